"""A manifest that says no more than it must."""

from typing import Any


def manifest(round_number: int, **said: Any) -> dict[str, Any]:
    """The document of round `round_number`, of which `said` is known."""
    nothing: dict[str, Any] = {"parent": None, "code": None, "class_terms": None, "pools_before": None}
    empty = {name: dict[str, Any]() for name in ("settings", "pools_after", "tables", "files", "shards", "counts")}
    return {"version": 1, "round": round_number, "strategy": "random", **nothing, **empty, **said}
