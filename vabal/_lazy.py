"""Packages whose members load when they are first asked for (PEP 562), so that a command pays for what it uses."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def members(package: str, homes: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """The `__getattr__` of a package: `homes` says which of its modules holds which members."""
    home_of = {name: module for module, names in homes.items() for name in names}

    def find(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home_of[name]}"), name)

    return find
