"""What an audit finds, and the record of a round as the checks read it."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from vabal.errors import UserError
from vabal.files import canonical_json
from vabal.rounds import Manifest, round_folder

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


class Record(Manifest):
    """A round's manifest as the checks read it."""

    @property
    def canonical(self) -> bool:
        """Whether its bytes are those of canonical JSON."""
        return self.content == canonical_json(self.to_json())

    @property
    def folder(self) -> str:
        return round_folder(Path(), self.round).as_posix()

    @property
    def file(self) -> str:
        return f"{self.folder}/manifest.json"


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
