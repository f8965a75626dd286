"""What this machine has: its processor, its cores and its disk. No torch."""

from __future__ import annotations

import os
import re
import shutil
from functools import cache
from pathlib import Path


@cache
def cpuinfo() -> str:
    """What Linux says of the processor; "" on other systems."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def processor() -> str:
    """The processor's name; "" if unknown."""
    match = re.search(r"^model name\s*:(.*)", cpuinfo(), re.MULTILINE)
    return match[1].strip() if match else ""


def cores() -> int:
    """The cores that this process is bound to, or all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_disk(folder: Path) -> int:
    """Free bytes for a folder, which may not exist yet."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(there).free
