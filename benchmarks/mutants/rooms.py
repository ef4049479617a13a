"""Which code is held against which tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
CACHE: Final = ROOT / ".mutants_cache"
STOPPED: Final = 75  # how a process ends that was stopped and has written its results so far


@dataclass(frozen=True)
class Room:
    """Files or folders below `vabal/`, and the tests that have to notice faults in them."""

    code: tuple[str, ...]
    tests: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        """Every module of the room."""
        places = [ROOT / "vabal" / name for name in self.code]
        found = [[place] if place.is_file() else sorted(place.rglob("*.py")) for place in places]
        return [path for paths in found for path in paths]


_ROUNDS = "tests/unit/rounds"
ROOMS: Final = {
    "probabilities": Room(("probabilities",), ("tests/unit/probabilities",)),
    "strategies": Room(
        ("strategies",),
        ("tests/unit/strategies", "tests/property/test_strategies_property.py", "tests/property/test_selection.py"),
    ),
    "keys": Room(("rounds/steps/keys.py",), (f"{_ROUNDS}/test_stage_keys.py",)),
    "store": Room(
        ("rounds/stage_store.py",),
        tuple(f"{_ROUNDS}/test_{name}.py" for name in ("store", "code_version", "own_folders")),
    ),
    "pools": Room(("pools",), ("tests/unit/pools", "tests/property/test_pools_property.py")),
    "promotion": Room(("promotion",), ("tests/unit/promotion",)),
}
