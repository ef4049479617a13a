"""Labels into the inbox: checked against the pools, told what they change, stored."""

import shlex
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vabal.errors import UserError
from vabal.files import make_folder, sha256
from vabal.labels.arrivals import next_name, one_at_a_time, pending, read, some_of
from vabal.labels.classes import upcoming
from vabal.labels.consensus import CONSENSUS
from vabal.labels.names import ids_of
from vabal.pools import EVENTS, FROM_SOURCE, Classes, Pools, among, named, stack, standing, typed, write_table
from vabal.pools.class_names import is_name

_LISTED: Final = 10
UNNAMED: Final = "unknown"  # the annotator of a label that names none


# --- labels -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImportReport:
    """What became of a file of labels. `name` is its place in the inbox, None if there was nothing to take in.

    `repeated` opinions were known and are left out. `disagreeing` are the images on which people's last opinions
    differ, or of which one person says two things at one time; `changed` those of which another label stands now
    (sample, label before, label now; None: rejected), `outdated` those of which a newer opinion stands than the file's.
    `wrong` are answers that were left out (where, why): of a server's alone, for a file with wrong lines is refused.
    """

    file: str
    name: str | None
    labels: int = 0
    rejections: int = 0
    unanswered: int = 0
    imported_before: bool = False
    images: int = 0
    repeated: int = 0
    outdated: tuple[str, ...] = ()
    disagreeing: tuple[str, ...] = ()
    changed: tuple[tuple[str, str | None, str | None], ...] = ()
    wrong: tuple[tuple[str, str], ...] = ()

    def lines(self) -> list[str]:
        """For people."""
        if self.imported_before:
            return [f"{self.file} was imported before, as it is: nothing to do"]
        if self.name is None:
            said = [f"{self.file}: no label in it" + (" that is new" if self.repeated else "")]
        else:
            taken = f"{self.labels} labels and {self.rejections} rejections taken in, of {self.images} images"
            said = [f"{self.file}: {taken}; the next round learns from them"]
        if self.changed:
            listed = [f"{sample} {old or 'rejected'} -> {new or 'rejected'}" for sample, old, new in self.changed]
            said.append(f"{len(listed)} earlier labels change: {some_of(listed)}")
        if self.disagreeing:
            said.append(f"{len(self.disagreeing)} images have opinions that disagree: {some_of(self.disagreeing)}")
        if self.outdated:
            said.append(f"{len(self.outdated)} images keep a newer opinion than the file's: {some_of(self.outdated)}")
        if self.repeated:
            said.append(f"{self.repeated} repeat what was taken in before: left out")
        if self.unanswered:
            said.append(f"{self.unanswered} without a label or an annotator: not answered yet")
        if self.wrong:
            said.append(f"{len(self.wrong)} are wrong and left out: {some_of([': '.join(one) for one in self.wrong])}")
        return said

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def take_labels(
    inbox: Path,
    pools: Pools,
    answers: pd.DataFrame,
    *,
    file: str,
    content: bytes | None,
    when: datetime,
    reject: bool = True,
) -> ImportReport:
    """Put a file's answers into the inbox: all of them or, if one is wrong, none.

    A server's answers (`content` is None) come bit by bit: there, wrong ones are left out and told in the report.

    `answers` has the columns where (as "line 3"), sample_id (or the image's blind name), label, annotator and problem,
    null where there is none, and, if wanted, labeled_at: when the opinion was given (where that is not known, `when`
    stands for it), and round: the request that it answers. A label may be an earlier name of its class, or that of a
    class which the next round adds. A line with an annotator and no label rejects the sample; one with neither is not
    answered yet, and skipped. What is known already is left out: the same opinion of the same time or, without a time,
    what its annotator said last of the sample, unless it answers the open request that asks just about that once more.
    `file` and `content` are the file's name and bytes: the very same bytes are taken in once. The labels are on disk,
    durable, when this returns.

    Raises UserError that lists the wrong lines: unknown samples (those waiting in the inbox are known), labels outside
    the classes, and what the reader found wrong; and, without `reject`, for a file that rejects most of the images that
    it names.
    """
    with one_at_a_time(inbox):
        events_before, arrivals = read(inbox, pending(inbox))
        sources = pd.concat([events_before["source"], pools.label_events["source"]])
        if content is not None and sources.str.endswith(f"#{sha256(content)[:16]}").any():
            return ImportReport(file, None, imported_before=True)
        there = pd.concat([each[["sample_id", "sha256"]] for each in (pools.catalog, *(a.catalog for a in arrivals))])
        answers = answers.assign(sample_id=ids_of(answers["sample_id"], there))
        classes = Classes.of(upcoming(inbox, pools))
        problems = _problems(answers, there["sample_id"], classes)
        if content is not None:
            _refuse_wrong_lines(answers["where"], problems, classes, file)
        wrong = tuple(zip(answers["where"][problems.notna()], problems.dropna(), strict=True))
        answers = answers[problems.isna()].reset_index(drop=True)
        blank = answers["label"].isna() & answers["annotator"].isna()
        given = answers[~blank]
        said = _events(given, when, file)
        past = stack([pools.label_events, events_before], EVENTS)
        past = named(past[among(past["sample_id"], said["sample_id"])].reset_index(drop=True), classes)
        repeated = _repeated(named(said, classes), past) & ~_answers_again(given, past, pools)
        events = said[~repeated].reset_index(drop=True)
        meant = named(events, classes)
        if not reject:
            _refuse_many_rejections(events, answers["sample_id"].nunique(), file)
        report = _report(file, past, meant, unanswered=int(blank.sum()), repeated=len(said) - len(events))
        report = replace(report, wrong=wrong)
        if events.empty:
            return report
        digest = sha256(_as_bytes(events) if content is None else content)
        events["source"] = f"{file}#{digest[:16]}"
        name = f"labels/{next_name(inbox, digest)}.parquet"
        make_folder(inbox / "labels")
        write_table(events, inbox / name, EVENTS)
    return replace(report, name=name)


def _as_bytes(events: pd.DataFrame) -> bytes:
    """What these events say, for their digest."""
    columns = [events[name].astype(object) for name in ("sample_id", "label", "annotator", "labeled_at")]
    return "\n".join("\0".join(map(str, row)) for row in zip(*columns, strict=True)).encode()


def _report(file: str, past: pd.DataFrame, events: pd.DataFrame, *, unanswered: int, repeated: int) -> ImportReport:
    return ImportReport(
        file,
        None,
        labels=int(events["label"].notna().sum()),
        rejections=int(events["label"].isna().sum()),
        unanswered=unanswered,
        images=int(events["sample_id"].nunique()),
        repeated=repeated,
        **_consequences(past, events),
    )


def _events(taken: pd.DataFrame, when: datetime, source: str) -> pd.DataFrame:
    """Label events of the answers that say something."""
    times = [when] * len(taken)
    imported: list[datetime | None] = [None] * len(taken)
    for place, time in enumerate(taken.get("labeled_at", [])):
        if not pd.isna(time):
            times[place], imported[place] = time, when
    columns = {"labeled_at": times, "imported_at": imported}
    timed = {name: pd.Series(values, index=taken.index, dtype=object) for name, values in columns.items()}
    return typed(taken.assign(annotator=taken["annotator"].fillna(UNNAMED), source=source, **timed), EVENTS)


def _repeated(events: pd.DataFrame, past: pd.DataFrame) -> "pd.Series[bool]":
    """Which events are no new opinions: the same of the same time; of no time, what the annotator said last; and what
    a consensus said, which is made anew of people's opinions."""
    opinion = ["sample_id", "label", "annotator", "labeled_at"]
    timed = events["imported_at"].notna()
    both = pd.concat([past[past["imported_at"].notna()], events[timed]])
    again = both.duplicated(opinion).iloc[len(both) - int(timed.sum()) :]
    last = standing(past, by=["sample_id", "annotator"])[opinion[:3]]
    same = events[opinion[:3]].merge(last, how="left", indicator=True)["_merge"] == "both"
    repeated: pd.Series[bool] = same & ~timed & (events["annotator"] != UNNAMED)
    repeated[again.index[again]] = True
    return repeated | (events["annotator"] == CONSENSUS)


def _answers_again(answers: pd.DataFrame, past: pd.DataFrame, pools: Pools) -> NDArray[np.bool_]:
    """Which answers are to an open request that asks once more: there what somebody says again is an opinion."""
    none = np.zeros(len(answers), dtype=bool)
    if "round" not in answers or pools.asked_again.empty:
        return none
    newest = pools.asked_again.drop_duplicates("sample_id", keep="last").set_index("sample_id")
    ids = answers["sample_id"]
    asked, before = (newest[name].reindex(ids).fillna(-1).to_numpy(dtype=np.int64) for name in ("round", "events"))
    there = past["sample_id"].value_counts().reindex(ids).fillna(0).to_numpy(dtype=np.int64)
    told = pd.to_numeric(answers["round"]).fillna(-2).to_numpy(dtype=np.int64)
    named_one = answers["annotator"].notna() & (answers["annotator"] != CONSENSUS)
    confirming: NDArray[np.bool_] = (told == asked) & (there == before) & named_one.to_numpy(dtype=bool)
    return confirming


def _consequences(past: pd.DataFrame, events: pd.DataFrame) -> dict[str, Any]:
    """What the opinions `events` come to beside those of `past`: `changed`, `outdated` and `disagreeing`."""
    both = stack([past, events], EVENTS)
    stands = standing(both)
    fresh = among(stands["sample_id"], events["sample_id"])
    outdated = stands.loc[fresh & (stands.index < len(past)), "sample_id"]
    pairs = standing(past).merge(stands, on="sample_id", suffixes=("", "_now"))[["sample_id", "label", "label_now"]]
    pairs = pairs.astype(object).where(pairs.notna(), None)
    people = standing(both[~both["annotator"].isin([FROM_SOURCE, CONSENSUS])], by=["sample_id", "annotator"])
    opinions = people.groupby("sample_id", sort=False)["label"].nunique(dropna=False)
    at_once = events.groupby(["sample_id", "annotator", "labeled_at"], sort=False)["label"].nunique(dropna=False)
    torn = set(at_once.index[at_once > 1].get_level_values("sample_id"))
    return {
        "changed": tuple((sample, old, new) for sample, old, new in pairs.to_numpy() if old != new),
        "outdated": tuple(outdated),
        "disagreeing": tuple(name for name, count in opinions.items() if count > 1 or name in torn),
    }


def _refuse_many_rejections(events: pd.DataFrame, named: int, file: str) -> None:
    rejected = standing(events)["label"].isna().sum()
    if 2 * rejected > named:
        raise UserError(
            f"{file}: nothing was taken in: it rejects {rejected} of the {named} images that it names (an annotator "
            "and no label: the image is not asked for again); if that is meant, import it with --reject"
        )


def _problems(answers: pd.DataFrame, known: pd.Series, classes: Classes) -> "pd.Series[Any]":
    """What is wrong with each answer, null where nothing is."""
    strange = ~among(answers["sample_id"], known)
    outside = answers["label"].notna() & ~among(answers["label"], classes.meaning)
    problems = answers["problem"].astype(object)
    problems = problems.where(problems.notna() | ~outside, answers["label"].map(_no_class, na_action="ignore"))
    return problems.where(answers["problem"].notna() | ~strange, "unknown sample " + answers["sample_id"].map(repr))


def _no_class(label: Any) -> str:
    said = f"label {label!r} is no class"
    return f"{said}: `vabal classes add {shlex.quote(label)}` makes it one" if is_name(str(label)) else said


def _refuse_wrong_lines(where: pd.Series, problems: pd.Series, classes: Classes, file: str) -> None:
    wrong = problems.notna()
    if not wrong.any():
        return
    count = int(wrong.sum())
    said = (where + ": " + problems)[wrong].head(_LISTED)
    more = f"; and {count - _LISTED} more" if count > _LISTED else ""
    listed = ", ".join(classes.names[:12]) + (", ..." if len(classes.names) > 12 else "")
    raise UserError(
        f"{file}: nothing was taken in, {count} of {len(where)} lines are wrong: {'; '.join(said)}{more} "
        f"(classes: {listed})"
    )
