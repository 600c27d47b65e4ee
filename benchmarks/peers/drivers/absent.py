"""Stand-ins for what a library imports at its top but its trainers never touch."""

from __future__ import annotations

import sys
from types import ModuleType


def stand_in(module: str, *names: str) -> None:
    """From now on `from module import name` works, and gives nothing of use."""
    stub = ModuleType(module)
    for name in names:
        setattr(stub, name, object)
    sys.modules.setdefault(module, stub)
