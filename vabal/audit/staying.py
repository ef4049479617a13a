"""Images that stay in S3: whether their objects are there as they were taken in. No bytes are fetched."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from vabal import objects
from vabal.audit.findings import UNREADABLE, Finding, Record, one_line
from vabal.audit.places import Outside
from vabal.errors import shown, some
from vabal.images.shards import references
from vabal.objects import Listed, Reference, Store, parts_of
from vabal.progress import track

_PAGE: Final = 1000  # objects that one request lists


def check_objects(data: Path, records: Sequence[Record], outside: Outside) -> Iterator[Finding]:
    """A finding for each shard of which an object changed or is gone; a note where the bucket keeps it as a version."""
    assert outside.objects is not None  # noqa: S101 -- asked before
    first = {shard: record.round for record in reversed(records) for shard in record.shards}
    held: dict[str, dict[str, tuple[str, Reference]]] = {}
    for shard, number in sorted(first.items()):
        if number < outside.since or not (data / "images" / f"{shard}.parquet").is_file():
            continue  # `check_files` names one that is missing
        try:
            held[shard] = {image.uri: (sample_id, image) for sample_id, image in references(data, shard)}
        except UNREADABLE as error:
            yield Finding(first[shard], f"images/{shard}.parquet", f"cannot be read: {one_line(error)}")
    try:
        wanted = {uri for of_shard in held.values() for uri in of_shard}
        there = _there(outside.objects, wanted)
        kept = 0
        for shard, of_shard in track(held.items(), "verify objects", len(held)):
            changed: tuple[list[str], str] = ([], "changed")
            gone: tuple[list[str], str] = ([], "are gone")
            for uri, (sample_id, image) in of_shard.items():
                found = there.get(uri)
                if found is not None and (found.etag, found.size) == (image.etag, image.size):
                    continue
                if image.version is not None and outside.objects.look(uri, image.version) is not None:
                    kept += 1
                else:
                    (gone if found is None else changed)[0].append(f"{shown(uri)} (sample {sample_id})")
            told = [f"{len(names)} objects {what}: {some(names)}" for names, what in (changed, gone) if names]
            if told:
                what = f"{'; '.join(told)}: put the same bytes there again"
                yield Finding(first[shard], f"images/{shard}.parquet", what)
        if kept:
            outside.notes.append(
                f"{kept} objects were written over or deleted in S3; the bucket keeps the versions that were taken in"
            )
    except UNREADABLE as error:
        yield Finding(None, "S3", f"the images that stay there were not looked at: {one_line(error)}")


def _there(store: Store, wanted: Collection[str]) -> dict[str, Listed]:
    """What is there of these addresses: from listings, or, where they hold far more than is wanted, one by one."""
    buckets: dict[str, list[str]] = {}
    for uri in wanted:
        buckets.setdefault(parts_of(uri)[0], []).append(uri)
    found: dict[str, Listed] = {}
    for uris in buckets.values():
        top = os.path.commonprefix(uris).rpartition("/")[0]  # noqa: RUF071 -- cut at a slash right here
        for number, listed in enumerate(store.below(f"{top}/")):
            if listed.uri in wanted:
                found[listed.uri] = listed
            if number > _PAGE * len(uris):
                rest = [uri for uri in uris if uri not in found]
                found |= {uri: one for uri, one in objects.ahead(rest, store.look, lambda _: 0) if one is not None}
                break
    return found
