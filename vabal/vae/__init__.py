"""The VAE that is regularised to imitate the classifier (paper, Sections 3.3 and 3.4; Eqs. 7-10).

It models the classifier's deep features. Its latent space has one block of dimensions a class, and the *absence* of a
block (small energy) stands for the class: Eq. 7 reads a sample's class off the block with the least energy, and
zeroing a block before decoding selects the virtual VAE of that class. Axes: the legend of the package; B samples of a
step.
"""

from vabal.vae.features import Features, PoolFeatures, to_tensor
from vabal.vae.network import ANCHORS, FORMAT, FeatureVAE, Layer, Loss, anchors_of, build, kl_divergence, load, save
from vabal.vae.training import epochs_of, fit

__all__ = [
    "ANCHORS",
    "FORMAT",
    "FeatureVAE",
    "Features",
    "Layer",
    "Loss",
    "PoolFeatures",
    "anchors_of",
    "build",
    "epochs_of",
    "fit",
    "kl_divergence",
    "load",
    "save",
    "to_tensor",
]
