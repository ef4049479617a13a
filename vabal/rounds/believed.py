"""What a round's probe says of images that it has not learned from, for the consensus of the night that follows."""

from pathlib import Path

import numpy as np

from vabal import pools
from vabal.labels.consensus import Believed
from vabal.rounds import tables
from vabal.rounds.manifests import round_folder


def believed(data: Path, number: int, classes: pools.Classes) -> Believed | None:
    """What round `number` recorded in `data`, by today's `classes`; None where it recorded nothing.

    Raises what `tables.read_held_out` raises, and ValueError for another number of classes than there were.
    """
    path = round_folder(data, number) / tables.HELD_OUT_FILE
    if not path.is_file():
        return None
    ids, then_N_C = tables.read_held_out(path)
    names = pools.read_classes(data, number).names
    if then_N_C.shape[1] != len(names):
        raise ValueError("not one probability a class")
    now_N_C = np.zeros((len(ids), len(classes.names)))
    for place, name in enumerate(names):  # a class that was merged brings its probability along
        now_N_C[:, classes.names.index(classes.meaning[name])] += then_N_C[:, place]
    return Believed(ids, now_N_C, classes.names)
