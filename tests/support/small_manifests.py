"""A manifest that says no more than it must."""

from typing import Any


def manifest(round_number: int, **said: Any) -> dict[str, Any]:
    """The document of round `round_number`, of which `said` is known."""
    nothing = {"parent": None, "code": None, "class_terms": None, "pools_before": None}
    empty = ("settings", "pools_after", "tables", "files", "shards", "counts")
    least = {"version": 1, "round": round_number, "strategy": "random", **nothing, **{name: {} for name in empty}}
    return least | said
