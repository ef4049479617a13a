"""`params.yaml` as frozen, strict models: one section per stage, unknown keys refused with their path.

A function receives its section, not the whole. Endpoints and secrets come from the environment, never from here.
"""

import re
import zoneinfo
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from vabal.settings import cron
from vabal.settings.base import BitDepth, BucketName, NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share
from vabal.settings.learners import (
    BackboneSettings,
    ClassifierSettings,
    FeatureSettings,
    FineTuneSettings,
    PretrainSettings,
)


class WorkspaceSettings(Section):
    name: str = Field(
        "default",
        pattern=r"^[a-z0-9][a-z0-9-]{0,39}$",
        description="Names the MLflow experiment, the registered model and the deployment; `default` adds no prefix.",
    )


class ImageSettings(Section):
    size: Annotated[int, Field(ge=4, le=1024)] = Field(32, description="Images are resized to size x size pixels.")
    channels: Literal[1, 3] = Field(3, description="1 for grey images, 3 for colour.")
    bit_depth: BitDepth = Field(
        "auto",
        description="Bits of grey values in 16-bit files that do not tell; auto: what holds an image's largest value. "
        "`vabal init` writes down what holds its source's largest value.",
    )
    max_megapixels: PositiveFloat = Field(50.0, description="A larger image is quarantined, not read.")
    max_megabytes: PositiveFloat = Field(50.0, description="A larger file is quarantined, not read.")


class PoolSettings(Section):
    shard_megabytes: PositiveFloat = Field(128.0, description="A shard of images is closed at this size ...")
    shard_rows: PositiveInt = Field(100_000, description="... or at this many images, whichever comes first.")
    near_copies: Annotated[int, Field(ge=0, le=64)] = Field(
        24,
        description="Pictures whose perceptual hashes differ in at most this many of 256 bits, and whose thumbnails "
        "correlate, are near copies and stay on one side of the holdout; 0: only equal pixels are looked for.",
    )
    drift_images: Annotated[int, Field(ge=0, le=2000)] = Field(
        500,
        description="At most so many of the images that a night takes in are compared with as many earlier ones "
        "(`vabal control`); 0: none.",
    )


class StorageSettings(Section):
    bucket: BucketName = Field(
        "vabal",
        description="The S3 bucket of DVC's remote; the endpoint and keys come from the environment.",
    )
    prefix: str = Field("dvc", pattern=r"^[A-Za-z0-9._/-]*$", description="Where in the bucket DVC keeps the pools.")
    git_remote: str | None = Field(
        None, description="Push commit and tag of a round to this git remote; its refusal locks out a second machine."
    )


class AuditSettings(Section):
    sign: bool = Field(
        False,
        description="Sign the tags of rounds and decisions, with the key and format (SSH, GPG) of git's configuration.",
    )
    anchor: str | None = Field(
        None,
        pattern=r"^s3://[a-z0-9][a-z0-9.-]+/.+$",
        description="s3://bucket/prefix: the head of the record is written there once per round and decision.",
    )
    anchor_years: int = Field(
        10,
        ge=1,
        le=100,
        description="How long a bucket with Object Lock and no rule of its own keeps an anchored head.",
    )


class StudioSettings(Section):
    url: str = Field(
        pattern=r"^https?://[^\s@/?#]+(/[^\s@?#]*)?$",
        description="The address of Label Studio; its token comes from the environment (LABEL_STUDIO_API_KEY).",
    )
    project: PositiveInt | Annotated[str, Field(min_length=3, max_length=50)] | None = Field(
        None, description="The project's number, or its title; null: the workspace's name. A new title makes a project."
    )
    predictions: bool = Field(
        False, description="Show people what the model takes an image for: quicker, but they agree with it too easily."
    )
    images: Literal["upload", "s3"] = Field(
        "upload",
        description="How Label Studio gets images: each uploaded to it, or from a bucket that only they lie in, by a "
        "source storage of the project.",
    )
    bucket: BucketName | None = Field(
        None, description="`images: s3`: that bucket; null: `storage.bucket` with `-labelling` behind."
    )
    minutes: PositiveFloat = Field(
        60.0, description="The longest that a sync may take; what it did until then stays, and the next one goes on."
    )


class LabellingSettings(Section):
    when_incomplete: Literal["continue", "wait", "skip"] = Field(
        "continue",
        description="What a round does while labels of the last request are out: go on with what came, wait, or skip.",
    )
    consensus: Literal["latest", "majority", "crowdlab"] = Field(
        "latest",
        description="Which label stands where several people have an opinion on an image: the newest, or what most say "
        "(of a tie, the newest); or crowdlab: what people and the last round's classifier together make most probable.",
    )
    ask_again: Share = Field(
        0.0,
        description="Share of `selection.budget`, at least one image, that asks again about images whose opinions "
        "contradict each other and labels that are probably wrong (docs/labelling.md). 0: none is asked about again.",
    )
    stop_rule: Literal["never", "forecast", "agreement"] = Field(
        "never",
        description="When nights ask for no more labels and end as EnoughLabels: forecast, once the upper end of what "
        "the next request adds (`vabal forecast`) is below `stop_below` points; agreement, once kappa between one "
        "night's model and the next is short of 1 by less, on average over three.",
    )
    stop_below: PositiveFloat = Field(1.0, description="Points, for `stop_rule`.")
    share: Share = Field(1.0, description="`wait` and `skip`: the share of the last request that is enough to go on.")
    wait_hours: NonNegativeFloat = Field(8.0, description="`wait`: go on with what came after this long.")
    poll_seconds: PositiveFloat = Field(30.0, description="`wait`: how often the inbox is looked at.")
    studio: StudioSettings | None = Field(
        None, description="The Label Studio server of `vabal labels sync`, as {url: ...}; docs/labelling.md."
    )


class VaeSettings(Section):
    """The regularised VAE (paper, Section 3.3 and 3.4); every point that the paper leaves open is an option."""

    heads: Literal["bn_fc_sigmoid", "fc_relu_bn"] = Field(
        "bn_fc_sigmoid", description="Per-stage heads: the paper's text, or the published code's order."
    )
    head_width: PositiveInt = Field(128, description="Outputs of a head; four heads make 512 inputs.")
    stop_gradient: bool = Field(True, description="Detach the reconstruction's target, else heads can collapse.")
    body: Literal["relu", "relu_bn"] = Field("relu_bn", description="Hidden layers without or with batch norm.")
    hidden_layers: PositiveInt = Field(3, description="Hidden layers of the encoder, and of the decoder.")
    hidden_width: PositiveInt = Field(128, description="Neurons of a hidden layer.")
    latent_per_class: PositiveInt = Field(10, description="Latent dimensions dedicated to each class.")
    energy: Literal["square", "absolute", "sigmoid"] = Field("square", description="w of Eq. 7 (paper, Table 2).")
    class_weight: NonNegativeFloat = Field(1.0, description="Lambda of Eq. 10.")
    loss_reduction: Literal["mean", "sum"] = Field(
        "mean", description="Squared error and KL averaged or summed over their dimensions."
    )
    reconstruction_half: bool = Field(False, description="The factor 1/2 of a unit-variance Gaussian.")
    training_mask: bool = Field(True, description="Zero the block of the classifier's class before decoding.")
    kl_blocks: Literal["all", "unmasked"] = Field("all", description="Whose KL counts where a block is masked.")
    learning_rate: PositiveFloat = Field(1e-2, description="Adam's learning rate.")
    decay_at: Share = Field(0.75, description="Share of the epochs after which the learning rate drops; 1: never.")
    decay_factor: PositiveFloat = Field(0.1, description="What the learning rate is multiplied by there.")
    reset_optimizer: bool = Field(False, description="Forget Adam's moments at the drop, as the published code does.")
    warmup_epochs: Annotated[int, Field(ge=0)] = Field(0, description="Gradient-free passes that fill batch norm.")
    epochs: PositiveInt = Field(20, description="Passes over the unlabelled pool.")
    min_steps: Annotated[int, Field(ge=0)] = Field(200, description="More passes, if the pool is too small for this.")
    max_steps: Annotated[int, Field(ge=0)] = Field(
        500, description="Training ends here (but not before `min_steps`), if the pool is large; 0: never."
    )
    rows: Annotated[int, Field(ge=0)] = Field(
        100_000,
        description="A larger unlabelled pool is stood for by so many of its images, drawn uniformly, in training and "
        "where class terms are estimated; 0: by all.",
    )
    batch_size: PositiveInt = Field(128, description="Samples a step at most; an epoch is shared out evenly.")
    shuffle: bool = Field(True, description="Another random order each epoch; off: the pool's, as the published code.")


class ProbabilitySettings(Section):
    """Eqs. 6, 9, 11 and 12, and how their parts are put together."""

    draws: PositiveInt = Field(10, description="Monte-Carlo draws T.")
    sampling: Literal["auto", "independent", "antithetic", "anchored"] = Field(
        "auto",
        description="How latents are drawn; anchored: few draws, mended by long runs at typical posteriors; auto: "
        "those, or 100 independent ones where that is less work, by the sizes of pool and network.",
    )
    products: Literal["float32", "auto"] = Field(
        "float32",
        description="Precision of the decoder's products; auto: bfloat16 where processor or GPU multiply it by "
        "themselves, else float32. Faster, and the last digits are then the machine's (docs/decisions/draws.md).",
    )
    likelihood_reduction: Literal["sum", "mean", "standardised", "contrast"] = Field(
        "standardised",
        description="Scale of log p(x|y^_n): summed or averaged over dimensions; standardised class by class over the "
        "candidates; or contrast: a sample's level and the differences between its classes standardised apart.",
    )
    likelihood_weight: NonNegativeFloat = Field(1.0, description="What the log likelihood is multiplied by.")
    likelihood_kl: Literal["all", "unmasked", "none"] = Field("all", description="Whose KL enters Eq. 9's bound.")
    prior_pool: Literal["labeled", "unlabeled", "labels"] = Field(
        "labeled", description="Where Eq. 12 counts the VAE's classes; labels: the labels at hand are counted instead."
    )
    use_prior: bool = Field(True, description="Off: p(y_n) = 1 (paper, Table 1).")
    precision_from: Literal["vae", "cross_fitted"] = Field(
        "vae", description="Eq. 11 from the VAE's classes, or from classifiers fitted on folds of the labelled pool."
    )
    folds: Annotated[int, Field(ge=2)] = Field(3, description="Folds of `cross_fitted`.")
    use_precision: bool = Field(True, description="Off: p(y_n|y^_n) = 1 (paper, Table 1).")
    smoothing: PositiveFloat = Field(1.0, description="Laplace smoothing of Eqs. 11 and 12, in units of samples.")
    classes: Literal["all", "predicted", "classifier", "posterior"] = Field(
        "all",
        description="Sum Eq. 6 over all classes; or take one's own term: Eq. 7's class, or the classifier's; or "
        "posterior: the inverse terms expected under the classifier's posterior.",
    )
    exponent: NonNegativeFloat = Field(1.0, description="Prior and precision to this power: below 1, less extreme.")
    guard: Share = Field(
        0.0,
        description="Against junk: the candidates of the least likelihood over all classes come last, at most this "
        "share of them, and those alone that are less likely than 98 % of the labelled samples.",
    )
    score: Literal["eq6", "published_code"] = Field("eq6", description="Eq. 6, or the published code's 1 - sum(loss).")
    margin_weight: NonNegativeFloat = Field(0.0, description="Adds this times log(1 - margin of the posterior).")
    members: PositiveInt = Field(
        1,
        description="Networks, the classifier among them, whose mean posterior stands for the classifier's in margin, "
        "`classifier` and `posterior`; each but the first is one more training.",
    )


class SelectionSettings(Section):
    strategy: str = Field("vabal", min_length=1, description="One of docs/strategies.md, or an installed plug-in.")
    budget: PositiveInt = Field(100, description="Samples a round asks labels for.")
    control_share: Share = Field(
        0.0,
        description="Share of the budget, at least one sample, drawn uniformly before the picks: what its labels tell "
        "of pool and model holds without bias (`vabal control`). 0: none is drawn. Left out: the preset's; a benchmark "
        "draws none unless it is told to.",
    )
    batch: Literal["topk", "gumbel", "quota", "spread", "quota_spread", "coverage"] = Field(
        "topk",
        description="The best k; Gumbel top-k sampling; quotas per class; spread: high scores far from "
        "one another in the features; quota_spread: such a batch within quotas; or coverage: samples that look like "
        "many high scores which no label is near to. Left out: the preset's.",
    )
    beta: PositiveFloat = Field(
        1.0,
        description="Inverse temperature of `gumbel` and of quotas: the smaller, the more even. With `spread`, the "
        "weight of the score against the distance; with `coverage`, the power of exp(score) by which samples weigh.",
    )
    record: Literal["full", "compact"] = Field(
        "full",
        description="What a round keeps of every candidate, and picks by: all digits, or no more than picks depend on, "
        "which takes a third of the space (docs/audit.md). Left out: the preset's.",
    )
    features: Literal["classifier", "backbone"] = Field(
        "classifier",
        description="What `typiclust` clusters: the classifier's last features, or those of the frozen network of the "
        "section `backbone`, whatever the learner.",
    )
    narrowing: bool = Field(
        True, description="`direct`: half of the budget goes to where a class's threshold can lie, its first phase."
    )
    vaal_steps: Literal["auto", "published"] | PositiveInt = Field(
        "auto",
        description="`vaal`: steps of its networks; published: its authors' number and batches (100 passes over the "
        "pool in batches of 128); auto: published on a GPU, else at most 600.",
    )


class MethodSettings(Section):
    preset: Literal["vabal", "without_vae", "paper", "published_code"] = Field(
        "vabal",
        description="Where `vae`, `probabilities` and of `selection` the settings `batch`, `control_share` and "
        "`record` come from, where they are left out.",
    )


class PromotionSettings(Section):
    min_gain: Annotated[float, Field(ge=-1, le=1)] = Field(
        0.0, description="The lower bound of the balanced accuracy gained must be above this."
    )
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(
        0.95, description="How sure, over all uses of one holdout, that no challenger is promoted without such a gain."
    )
    tolerance: Share = Field(
        0.01, description="A first champion that is named may be shown to be worse than the best candidate by this."
    )
    max_recall_drop: Share = Field(0.05, description="No class may be shown to lose more recall than this.")

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_no_setting_any_more(cls, raw: Any) -> Any:
        """`resamples`, which the `params.yaml` and the manifests of earlier workspaces have."""
        return {key: value for key, value in raw.items() if key != "resamples"} if isinstance(raw, dict) else raw


class ScheduleSettings(Section):
    cron: str = Field("0 2 * * *", description="When the nightly round starts: minute, hour, day, month, weekday.")
    timezone: str = Field("UTC", min_length=1, description="An IANA time zone, as Europe/Zurich.")

    @field_validator("cron")
    @classmethod
    def _a_time_that_comes(cls, value: str) -> str:
        wrong = cron.problem(value)
        if wrong is not None:
            raise ValueError(wrong)
        return value

    @field_validator("timezone")
    @classmethod
    def _a_known_time_zone(cls, value: str) -> str:
        if value != "UTC":  # which is known even where no time zone database is installed
            try:
                zoneinfo.ZoneInfo(value)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
                raise ValueError("must be an IANA time zone, as Europe/Zurich") from None
        return value


class NotifySettings(Section):
    """Messages about nights that nobody watches; where they go stands in the environment (docs/operations.md)."""

    by: list[Literal["webhook", "email", "command"]] = Field(
        [], description="How messages are sent; empty: none are. Addresses and passwords come from the environment."
    )
    events: list[Literal["published", "promoted", "refused", "failed", "labels_due", "missed"]] = Field(
        ["published", "promoted", "refused", "failed", "labels_due", "missed"],
        description="What is told: a published round; a new champion; a challenger that the gate refused, or a night "
        "that ended without a request; a night that failed; one that lacks labels; one that did not begin.",
    )
    email_to: list[Annotated[str, Field(pattern=r"^[^\s@<>,]+@[^\s@<>,]+$")]] = Field(
        [], description="Whom `email` writes to."
    )
    email_from: str = Field(
        "vabal@localhost", pattern=r"^[^\s@<>,]+@[^\s@<>,]+$", description="Who `email` says that it comes from."
    )
    missed_after_minutes: PositiveFloat = Field(15.0, description="A night that has not begun by then is missed.")

    @model_validator(mode="after")
    def _somebody_to_write_to(self) -> "NotifySettings":
        if "email" in self.by and not self.email_to:
            raise ValueError("by names email, so email_to must name somebody")
        return self


class ComputeSettings(Section):
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a GPU if there is one.")
    threads: Annotated[int, Field(ge=0)] = Field(0, description="CPU threads of torch; 0: as torch chooses.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="What networks that see images multiply in, learning and asked; auto: bfloat16 on a GPU that does "
        "so by itself, float32 elsewhere (docs/decisions/gpu.md).",
    )
    task_runner: Literal["local", "ray"] = Field("local", description="Where tasks run: in the flow's process, or Ray.")
    gpus_per_task: NonNegativeFloat = Field(0.0, description="GPUs that Ray sets aside for a task.")
    scratch_gigabytes: PositiveFloat = Field(
        200.0,
        description="What a machine keeps of stages' outputs, decoded images, embeddings and shards, below .vabal or "
        "a worker's scratch folder; what was not used for longest goes first.",
    )
    objects_gigabytes: PositiveFloat = Field(
        20.0,
        description="What a machine keeps, below .vabal/objects, of images that stay in S3; what was not used for "
        "longest goes first.",
    )


class Params(Section):
    """The whole of `params.yaml`."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Every random choice derives from it.")
    stages: str = Field(
        ".vabal/stages",
        min_length=1,
        description="The stage store: a folder, or s3://bucket/prefix where stages run on several machines.",
    )
    workspace: WorkspaceSettings = WorkspaceSettings()
    images: ImageSettings = ImageSettings()
    pool: PoolSettings = PoolSettings()
    storage: StorageSettings = StorageSettings()
    labelling: LabellingSettings = LabellingSettings()
    backbone: BackboneSettings = BackboneSettings()
    pretrain: PretrainSettings = PretrainSettings()
    classifier: ClassifierSettings = ClassifierSettings()
    finetune: FineTuneSettings = FineTuneSettings()
    features: FeatureSettings = FeatureSettings()
    method: MethodSettings = MethodSettings()
    vae: VaeSettings = VaeSettings()
    probabilities: ProbabilitySettings = ProbabilitySettings()
    selection: SelectionSettings = SelectionSettings()
    promotion: PromotionSettings = PromotionSettings()
    audit: AuditSettings = AuditSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    notify: NotifySettings = NotifySettings()
    compute: ComputeSettings = ComputeSettings()

    def below(self, root: Path) -> "Params":
        """With files that are named from the workspace on named from the top."""
        return self.model_copy(update={"backbone": self.backbone.below(root)})

    @field_validator("stages")
    @classmethod
    def _a_folder_or_s3(cls, value: str) -> str:
        scheme = re.match(r"^([a-z0-9+]+)://", value)
        if scheme and scheme.group(1) != "s3":
            raise ValueError("must be a folder or an s3:// address")
        if value.startswith("~"):
            raise ValueError("must be a whole path: ~ is not followed")
        return value
