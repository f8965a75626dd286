"""ghost: train small image classifiers, distil into them, and say honestly whether it helped.

As a library: `import ghostcli as ghost`, then `ghost.load`, `ghost.train`, `ghost.compare` and `ghost.runs` (api.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Comparison", "Network", "Run", "__version__", "compare", "load", "runs", "train"]

if TYPE_CHECKING:
    from ghostcli.api import Comparison, Network, Run, compare, load, runs, train


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """The interface is imported when it is used: the command needs none of it."""
    if name not in __all__:
        raise AttributeError(f"module 'ghostcli' has no attribute '{name}'")
    from ghostcli import api

    return getattr(api, name)
