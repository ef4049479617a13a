"""What an audit finds, and the record of a round as the checks read it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from vabal.errors import UserError
from vabal.rounds import round_folder

UNREADABLE = (
    *(pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError, UserError, ArithmeticError),
    MemoryError,
)


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was published: the round whose record it is in, the file below `data/`, and what."""

    round: int | None
    file: str
    what: str


@dataclass(frozen=True)
class Record:
    """A round's manifest, as far as it is checked, and the digest of its bytes."""

    round: int
    digest: str
    parent: str | None
    strategy: str
    settings: dict[str, Any]
    selection: dict[str, Any] | None  # rule, beta, budget, seed, shortlist; round 0 has none
    code: str | None
    class_terms: dict[str, Any] | None
    pools_before: dict[str, str] | None
    pools_after: dict[str, str]
    tables: dict[str, str]
    files: dict[str, str]
    shards: dict[str, str]
    counts: dict[str, int]
    document: dict[str, Any] = field(default_factory=dict)  # the whole of it
    canonical: bool = True  # its bytes are those of canonical JSON

    @property
    def version(self) -> int:
        version = self.document.get("version")
        return version if isinstance(version, int) else 0

    @property
    def folder(self) -> str:
        return round_folder(Path(), self.round).as_posix()


# -- words --------------------------------------------------------------------------------------------------------


def span(first: int, last: int) -> str:
    return f"round {first}" if first == last else f"rounds {first} to {last}"


def few(ids: "pd.Series[str]") -> str:
    names = list(dict.fromkeys(str(name) for name in ids))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"sample{'s' if len(names) > 1 else ''} {', '.join(names[:3])}{more}"


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
