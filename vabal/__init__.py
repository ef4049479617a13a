"""VaB-AL: active learning that weighs class abundance and class difficulty (Choi et al., arXiv:2003.11249).

Names of arrays end in their axes. The legend, used everywhere:

    N  samples          C  classes            D  features of the classifier, four stages side by side
    I  inputs of the VAE (the heads' outputs) Z  latent dimensions, ten per class
    T  Monte-Carlo draws                      H, W, K  height, width and channels of an image

The tree is the method: `classifier` (train), `features` (extract), `vae` (Eqs. 7-10), `probabilities`
(Eqs. 6, 9, 11, 12), `strategies` (select). `pools`, `images`, `sources`, `inbox`, `rounds` and `audit` keep the
books; `adapters` talks to the outside world, one vendor a file.
"""

__version__ = "0.1.0"
