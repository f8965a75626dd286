"""What each format and runtime makes of a network that comes with ghost: `ghost bench NAME --formats all`, as a record.

    python benchmarks/formats.py [pretrained/gns-1.0]       some minutes; writes benchmarks/results/formats.json

Timings want an idle machine, and the extras [onnx], [openvino] and [litert].
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ghostcli.machine import cpuinfo, processor

RECORD = Path(__file__).parent / "results" / "formats.json"


def machine() -> dict[str, object]:
    """The processor, its cores, and the instructions that add 8-bit products."""
    integers = [flag for flag in ("avx_vnni", "avx512_vnni", "amx_int8") if flag in cpuinfo().split()]
    return {"processor": processor(), "cores": os.cpu_count(), "integers": integers}


def main() -> None:
    network = sys.argv[1] if len(sys.argv) > 1 else "pretrained/gns-1.0"
    load = os.getloadavg()[0]
    command = [sys.executable, "-m", "ghostcli", "bench", network, "--formats", "all", "--json"]
    rows = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    found = {"network": network, **machine(), "load": round(load, 1), "rows": rows}
    RECORD.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
