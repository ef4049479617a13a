"""The card of a registered version: what it learned from, what it is worth class by class, and what it is not for.

Made from the record alone, so it can be made again for any round; as labels stand now, where they were corrected since.
"""

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vabal import pools
from vabal.audit import curve
from vabal.errors import UserError, shown
from vabal.pools.reading import read_classes
from vabal.rounds import manifest_numbers, read_manifest, round_folder, tables
from vabal.rounds.manifests import Manifest
from vabal.settings.params import recorded

#: With fewer holdout images a class's figures say nothing; promotion judges no class by them either.
_TOO_FEW: Final = 6
_MARKDOWN: Final = re.compile(r"([\\`*_\[\]|#])")


def card(data: Path, number: int) -> str:
    """Markdown. Raises UserError if there is no such round, it registered no version, or a file is damaged."""
    if number not in manifest_numbers(data):
        raise UserError(f"no round {number}: `vabal audit` lists them")
    manifest = read_manifest(data, number)
    if manifest.model is None or manifest.model.version is None:
        raise UserError(f"round {number} registered no version (`vabal round` makes the first)")
    classes, labels = read_classes(data, number).names, _labels(data, number)
    counts_C_C = _confusions(data, manifest, classes)
    return "\n".join(
        [
            f"# {manifest.model.name}, version {manifest.model.version}",
            "",
            *_made(data, manifest, classes),
            "",
            *_worth(manifest, counts_C_C, labels, classes),
            "",
            "## Limits",
            "",
            *(f"- {line}" for line in _limits(manifest, counts_C_C, labels, classes)),
            "",
        ]
    )


def _confusions(data: Path, manifest: Manifest, classes: Sequence[str]) -> NDArray[np.int64]:
    """counts_C_C of the holdout's images, of which none may be recorded."""
    counts_C_C = np.zeros((len(classes), len(classes)), dtype=np.int64)
    if tables.PREDICTIONS_FILE in manifest.files:
        names, told = tables.read_confusions(round_folder(data, manifest.round) / tables.PREDICTIONS_FILE)
        known = [place for place, name in enumerate(names) if name in classes]
        of = [classes.index(names[place]) for place in known]
        counts_C_C[np.ix_(of, of)] = told[np.ix_(known, known)]
    return counts_C_C


def _labels(data: Path, number: int) -> dict[str, int]:
    """Images that it learned from, by class as they were called then."""
    labeled, now = pools.read_one(data, "labeled"), read_classes(data).meaning
    counts = labeled.loc[labeled["round"] <= number, "label"].value_counts()
    return {name: int(counts.get(now.get(name, name), 0)) for name in read_classes(data, number).names}


def _made(data: Path, manifest: Manifest, classes: Sequence[str]) -> Iterator[str]:
    settings = recorded(manifest.settings)
    source = read_manifest(data, 0).settings.get("source", "?")
    images = settings.images
    yield (
        f"Round {manifest.round} of the workspace {_safe(settings.workspace.name)} trained it on "
        f"{manifest.counts['labeled']} labelled images of {len(classes)} classes (source {_safe(str(source))}); "
        f"{manifest.counts['unlabeled']} images were unlabelled."
    )
    yield ""
    kind = "colour" if images.channels == 3 else "grey"
    yield f"- classifier: {settings.classifier.learner}, {kind} images of {images.size} x {images.size} pixels"
    if manifest.times:
        when = manifest.times.finished[:16].replace("T", " ")
        yield f"- made: {when} UTC, seed {manifest.seed}, code {manifest.code}"
    yield f"- record: git tag `round/{manifest.round:04d}`, manifest sha256 {manifest.digest}"


def _worth(
    manifest: Manifest, counts_C_C: NDArray[np.int64], labels: dict[str, int], classes: Sequence[str]
) -> Iterator[str]:
    yield f"## Figures on {counts_C_C.sum()} holdout images"
    yield ""
    occurring_C = counts_C_C.sum(axis=0) + counts_C_C.sum(axis=1) > 0
    spans = curve.intervals(counts_C_C[np.ix_(occurring_C, occurring_C)]) if occurring_C.any() else {}
    told = manifest.metrics or {}
    for name in curve.MEASURES:
        if (value := told.get(f"holdout/{name}")) is not None:
            span = f" (95 %: {spans[name][0]:.3f} to {spans[name][1]:.3f})" if name in spans else ""
            yield f"- {name.replace('_', ' ')}: {value:.3f}{span}"
    yield ""
    yield "| class | labelled | holdout | recall | 95 % | precision |"
    yield "|---|--:|--:|--:|--:|--:|"
    right_C, images_C, said_C = np.diag(counts_C_C), counts_C_C.sum(axis=1), counts_C_C.sum(axis=0)
    low_C, high_C = curve.clopper_pearson(right_C, images_C)
    for place, name in enumerate(classes):
        recall, span, precision = "", "", ""
        if images_C[place]:
            recall = f"{right_C[place] / images_C[place]:.3f}"
            span = f"{low_C[place]:.2f} to {high_C[place]:.2f}"
        if said_C[place]:
            precision = f"{right_C[place] / said_C[place]:.3f}"
        yield f"| {_safe(name)} | {labels.get(name, 0)} | {images_C[place]} | {recall} | {span} | {precision} |"


def _limits(
    manifest: Manifest, counts_C_C: NDArray[np.int64], labels: dict[str, int], classes: Sequence[str]
) -> Iterator[str]:
    few = [name for name, seen in zip(classes, counts_C_C.sum(axis=1), strict=True) if seen < _TOO_FEW]
    unlearned = [name for name in classes if not labels.get(name)]
    if not counts_C_C.sum():
        yield "Nothing was measured: there is no labelled holdout."
    yield "What was labelled after round 0 is no uniform sample: the nights' strategies picked it."
    yield "The holdout comes from the same source: of other cameras, places or times these figures say nothing."
    yield "An image that shows none of these classes is given one of them all the same."
    if few:
        yield f"Fewer than {_TOO_FEW} holdout images, too few to judge: {_names(few)}."
    if unlearned:
        yield f"Without a labelled image, so never predicted: {_names(unlearned)}."
    if (error := (manifest.metrics or {}).get("holdout/calibration_error")) is not None:
        yield f"Its probabilities are off by {error:.3f} on average (expected calibration error)."


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(_safe, names))


def _safe(text: str) -> str:
    """A name as text, whatever Markdown or HTML it looks like."""
    return _MARKDOWN.sub(r"\\\1", html.escape(shown(text), quote=False))


def brief(text: str, limit: int) -> str:
    """At most so many characters, whole lines; says where the rest is."""
    rest = "\n\nThe whole card: in the run's artifacts, folder report, or `vabal card`."
    return text if len(text) <= limit else text[: limit - len(rest)].rsplit("\n", 1)[0] + rest
