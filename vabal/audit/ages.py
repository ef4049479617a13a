"""How old an opinion is, event by event: `pools.opinions` says the same of whole tables."""

from collections.abc import Iterable, Iterator
from typing import Final

_OLDEST: Final = -(2**63)  # of what came with the source


def stood(events: Iterable[tuple[str, int | None, int | None]]) -> Iterator[bool]:
    """Of each event, in the order of arrival, whether it stood when it came: as `pools.opinions.counting` says.

    An event is its sample, and the microseconds of `labeled_at` and `imported_at`. The last one of a sample that stood
    is the one that stands.
    """
    arrived, newest = dict[str, int](), dict[str, int]()
    for sample_id, said, imported in events:
        labeled = _OLDEST if said is None else said
        came = max(arrived.get(sample_id, _OLDEST), labeled if imported is None else imported)
        arrived[sample_id] = came
        age = came if imported is None else min(labeled, came)
        stands = age >= newest.get(sample_id, _OLDEST)
        if stands:
            newest[sample_id] = age
        yield stands
