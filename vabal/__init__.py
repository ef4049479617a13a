"""VaB-AL: active learning that weighs class abundance and class difficulty (Choi et al., arXiv:2003.11249).

Names of arrays end in their axes. The legend, used everywhere:

    N  samples          C  classes            D  features of the classifier, four stages side by side
    I  inputs of the VAE (the heads' outputs) Z  latent dimensions, ten per class
    T  Monte-Carlo draws                      H, W, K  height, width and channels of an image

The tree is the method: `learning` (train, extract), `vae` (Eqs. 7-10), `probabilities` (Eqs. 6, 9, 11, 12),
`strategies` (select). `images`, `sources`, `labels`, `pools`, `rounds`, `promotion` and `audit` keep the books;
`adapters` talks to the outside world, one vendor a file.
"""

import os
from typing import TYPE_CHECKING

# Threads that wait for one another sleep. OpenMP has them spin, and where other processes want the cores a training
# took fifteen times as long (docs/decisions/threads.md). It reads this as torch loads, so it stands before all else.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}

__version__ = "0.2.0"

if not TYPE_CHECKING:

    def __getattr__(name):
        """`vabal.params`, by which scripts written for 0.1.0 read settings; it stands in `vabal.settings` now."""
        if name == "params":
            from vabal.settings import params  # noqa: PLC0415 -- only who asks for it pays for it

            return params
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
