"""Labels of the pool that are probably wrong: what a probe says of each labelled image that it has not learned from."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vabal import pools
from vabal.errors import UserError
from vabal.images import DecodedShards
from vabal.labels.suspicion import FOLDS, can_be_doubted, suspicion
from vabal.learning import probe
from vabal.learning.device import device_of
from vabal.learning.embeddings import Embedder
from vabal.learning.probe import LabelledEmbeddings
from vabal.settings.models import Params
from vabal.settings.params import changed
from vabal.workspace import Workspace

_LISTED: Final = 20


@dataclass(frozen=True)
class Suspect:
    """A labelled image: its label, how probable that is to the probe, and what the probe says."""

    sample_id: str
    label: str
    probability: float
    predicted: str


@dataclass(frozen=True)
class Suspects:
    """The labelled images whose labels are the least probable, the least first; of all `labels`, confident learning
    holds `wrong` for wrong."""

    labels: int
    wrong: int
    suspects: tuple[Suspect, ...]

    def lines(self) -> list[str]:
        """For people."""
        said = [f"about {self.wrong} of {self.labels} labels are probably wrong; the least probable first:"]
        told = self.suspects[:_LISTED]
        said += [f"{one.sample_id}: {one.label} ({one.probability:.1%}), looks like {one.predicted}" for one in told]
        if len(self.suspects) > len(told):
            said.append(f"and {len(self.suspects) - len(told)} more (--json has all)")
        return said

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def find(place: Workspace, params: Params, most: int | None = None) -> Suspects:
    """The labels to look at again, `most` of them (default: as many as confident learning holds for wrong).

    By out-of-fold posteriors of a probe, whatever the workspace's learner: its backbone, and layers and penalty by
    cross-validation. Raises UserError where there are too few labels for that.
    """
    state = pools.read(place.data)
    rows = state.labeled[["sample_id", "label"]].merge(state.catalog, on="sample_id")
    rows = rows.sort_values("sample_id", ignore_index=True)
    if not can_be_doubted(rows["label"]):
        raise UserError("too few labels to doubt any: two classes with two labelled images each are the least")
    labels_L = np.array([state.classes.index(label) for label in rows["label"]], dtype=np.int64)
    settings = changed(params, {"classifier.learner": "probe"}).below(place.root)
    embedder = Embedder(settings.backbone, device_of(settings), place.embeddings)
    size = settings.images
    shards = DecodedShards(place.data, place.decoded, size.size, size.channels, bit_depth=size.bit_depth)
    known = LabelledEmbeddings(
        embedder.embed(shards.gather(rows)), labels_L, list(rows["sample_id"]), pools.groups_of(rows)
    )
    _, posterior_L_C = probe.held_out(
        known, embedder.embedded, len(state.classes), settings.classifier, folds=FOLDS, seed=settings.seed
    )
    order_L, wrong = suspicion(labels_L, posterior_L_C)
    return Suspects(
        len(rows), wrong, tuple(_told(rows, state.classes, posterior_L_C, order_L[: wrong if most is None else most]))
    )


def _told(
    rows: Any, classes: tuple[str, ...], posterior_L_C: NDArray[np.floating], places: NDArray[np.int64]
) -> Iterable[Suspect]:
    for place in places:
        label = str(rows.at[place, "label"])
        believed = float(posterior_L_C[place, classes.index(label)])
        yield Suspect(str(rows.at[place, "sample_id"]), label, believed, classes[int(posterior_L_C[place].argmax())])
