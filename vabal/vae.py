"""The VAE that is regularised to imitate the classifier (paper, Sections 3.3 and 3.4; Eqs. 7-10).

It models the classifier's deep features. Its latent space has one block of dimensions a class, and the *absence* of a
block (small energy) stands for the class: Eq. 7 reads a sample's class off the block with the least energy, and
zeroing a block before decoding selects the virtual VAE of that class. Axes: the legend of the package; B samples of a
step.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from vabal.errors import UserError
from vabal.learning.batches import batches_of
from vabal.learning.metrics import Metric
from vabal.settings.models import VaeSettings

FORMAT = "vabal.FeatureVAE/1"
ANCHORS = 64  # typical samples that a trained network remembers ...
_ANCHOR_CLASSES = 6400  # ... fewer with many classes, of each of which the estimate keeps a vector an anchor ...
_FEWEST_ANCHORS = 16  # ... but no fewer than these
_CANDIDATES = 2048  # samples that the anchors are chosen from ...
_PLACE_ELEMENTS = 2**22  # ... or fewer, if their posteriors have more numbers


class Layer(NamedTuple):
    """A linear layer, and the batch norm that follows its ReLU where there is one."""

    linear: nn.Linear
    norm: nn.BatchNorm1d | None


class Loss(NamedTuple):
    """Eq. 10 and its parts, means over the samples; `agreement` is the share whose Eq. 7 is the classifier's class."""

    total: Tensor
    reconstruction: Tensor
    kl: Tensor
    classification: Tensor
    agreement: Tensor


class FeatureVAE(nn.Module):
    """A VAE over the features of a classifier's stages.

    `feature_dims` are the lengths of the stages' features, which stand side by side in features_N_D; `settings` are
    those of `params.yaml`'s section `vae`, what is left out has its default. Weights come from torch's global random
    numbers: `build` makes a network from a seed. Raises TypeError for an unknown setting, ValueError for a value out
    of range.

    `anchors_A_D` are features of the pool that it was trained on, of samples with typical posteriors: the sampling
    `anchored` of `vabal.probabilities` takes them. Before training they are zero.
    """

    anchors_A_D: Tensor

    def __init__(self, feature_dims: Sequence[int], num_classes: int, **settings: Any) -> None:
        super().__init__()
        if num_classes < 1 or not feature_dims or min(feature_dims) < 1:
            raise ValueError(f"expected classes and features, found {num_classes} classes, features {feature_dims}")
        self.settings = _settings_of(settings)
        self.feature_dims = tuple(int(width) for width in feature_dims)
        self.num_classes = int(num_classes)
        chosen, hidden = self.settings, self.settings.hidden_width
        self.num_inputs = chosen.head_width * len(self.feature_dims)
        self.num_latents = chosen.latent_per_class * self.num_classes
        self.heads = nn.ModuleList(_head(width, chosen) for width in self.feature_dims)
        self.encoder = _body(self.num_inputs, chosen)
        self.mean = nn.Linear(hidden, self.num_latents)
        self.log_var = nn.Linear(hidden, self.num_latents)
        self.decoder = _body(self.num_latents, chosen)
        self.reconstruction = nn.Linear(hidden, self.num_inputs)
        self.register_buffer("anchors_A_D", torch.zeros(ANCHORS, sum(self.feature_dims)))

    def inputs(self, features_N_D: Tensor) -> Tensor:
        """inputs_N_I: the per-stage heads, concatenated. Raises ValueError for features of another width."""
        if features_N_D.ndim != 2 or features_N_D.shape[1] != sum(self.feature_dims):
            raise ValueError(f"expected features N x {sum(self.feature_dims)}, found {tuple(features_N_D.shape)}")
        stages = torch.split(features_N_D, list(self.feature_dims), dim=1)
        return torch.cat([head(stage) for head, stage in zip(self.heads, stages, strict=True)], dim=1)

    def encode(self, inputs_N_I: Tensor) -> tuple[Tensor, Tensor]:
        """mean_N_Z and log_var_N_Z of q(z|x)."""
        hidden_N_H = self.encoder(inputs_N_I)
        return self.mean(hidden_N_H), self.log_var(hidden_N_H)

    def decode(self, latent_N_Z: Tensor) -> Tensor:
        """reconstruction_N_I: the mean of p(x|z)."""
        decoded: Tensor = self.reconstruction(self.decoder(latent_N_Z))
        return decoded

    def class_energy(self, latent_N_Z: Tensor) -> Tensor:
        """energy_N_C: w of Eq. 7, the energy of each class's block; any leading axes. The least is the class."""
        blocks = self._blocks(latent_N_Z)
        match self.settings.energy:
            case "square":
                return blocks.square().sum(dim=-1)
            case "absolute":
                return blocks.abs().sum(dim=-1)
            case "sigmoid":
                return blocks.sigmoid().sum(dim=-1)

    def mask(self, latent_N_Z: Tensor, classes_N: Tensor) -> Tensor:
        """A copy with the block of each sample's class set to zero."""
        kept_N_C = latent_N_Z.new_ones(len(latent_N_Z), self.num_classes).scatter_(1, classes_N.long()[:, None], 0)
        return (self._blocks(latent_N_Z) * kept_N_C.unsqueeze(-1)).flatten(-2)

    def _blocks(self, latent_N_Z: Tensor) -> Tensor:
        """The latents as N x C x (dimensions of a class)."""
        return latent_N_Z.reshape(*latent_N_Z.shape[:-1], self.num_classes, self.settings.latent_per_class)

    def loss(self, features_N_D: Tensor, classes_N: Tensor, noise_N_Z: Tensor, settings: Any = None) -> Loss:
        """Eqs. 8-10 for the classes that the classifier predicts, at the latents mean + deviation * noise.

        L_Class (Eq. 8) sees the whole latent; where `training_mask` is on, the decoder sees it without the block of
        the predicted class. `settings` stand in for the network's own (another section `vae` with the same layers).
        """
        chosen = self.settings if settings is None else settings
        inputs_N_I = self.inputs(features_N_D)
        mean_N_Z, log_var_N_Z = self.encode(inputs_N_I)
        latent_N_Z = mean_N_Z + (0.5 * log_var_N_Z).exp() * noise_N_Z
        energy_N_C = self.class_energy(latent_N_Z)
        decoded_N_I = self.decode(self.mask(latent_N_Z, classes_N) if chosen.training_mask else latent_N_Z)
        target_N_I = inputs_N_I.detach() if chosen.stop_gradient else inputs_N_I
        divergence_N_Z = kl_divergence(mean_N_Z, log_var_N_Z)
        if chosen.training_mask and chosen.kl_blocks == "unmasked":
            divergence_N_Z = self.mask(divergence_N_Z, classes_N)
        summed = chosen.loss_reduction == "sum"
        reconstruction = functional.mse_loss(decoded_N_I, target_N_I)
        if summed:
            reconstruction = reconstruction * self.num_inputs
        if chosen.reconstruction_half:
            reconstruction = 0.5 * reconstruction
        kl = divergence_N_Z.mean() * (self.num_latents if summed else 1)
        classification = functional.cross_entropy(-energy_N_C, classes_N.long())  # Eq. 8
        total = reconstruction + kl + chosen.class_weight * classification  # Eqs. 9 and 10
        agreement = (energy_N_C.argmin(dim=1) == classes_N).to(total.dtype).mean()
        return Loss(total, reconstruction, kl, classification, agreement)

    def decoder_layers(self) -> list[Layer]:
        """The decoder's hidden layers in order; the linear layer `reconstruction` follows them."""
        modules = list(self.decoder)
        linears = [place for place, module in enumerate(modules) if isinstance(module, nn.Linear)]
        layers = []
        for place, end in zip(linears, [*linears[1:], len(modules)], strict=True):
            norms = [module for module in modules[place:end] if isinstance(module, nn.BatchNorm1d)]
            linear = modules[place]
            assert isinstance(linear, nn.Linear)  # noqa: S101 -- chosen so two lines above; for the type checker
            layers.append(Layer(linear, norms[0] if norms else None))
        return layers


def kl_divergence(mean_N_Z: Tensor, log_var_N_Z: Tensor) -> Tensor:
    """KL(q(z|x) || N(0, 1)) by latent dimension, in closed form; in nats."""
    return 0.5 * (mean_N_Z.square() + log_var_N_Z.exp() - 1 - log_var_N_Z)


def build(feature_dims: Sequence[int], num_classes: int, settings: Any = None, *, seed: int) -> FeatureVAE:
    """A new network whose weights depend on the seed alone; torch's global random numbers stay as they were.

    `settings` is a section `vae`, a mapping of its keys, or None for the defaults.
    """
    keywords = settings.model_dump() if isinstance(settings, VaeSettings) else dict(settings or {})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return FeatureVAE(feature_dims, num_classes, **keywords)


def to_tensor(values: Any, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """An array or tensor as a tensor; a read-only array is copied, which torch else warns of."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()
    return torch.as_tensor(values, device=device, dtype=dtype)


# -- training ---------------------------------------------------------------------------------------------------


class Features(Protocol):
    """Features by position: an array, a memory-mapped array, a tensor, or a reader of files such as `PoolFeatures`."""

    def __len__(self) -> int: ...
    def __getitem__(self, positions_B: NDArray[np.int64], /) -> Any: ...


class PoolFeatures:
    """The wanted rows of many shards as one long table, read from their files as they are asked for.

    A shard is a function that reads the given rows, and the rows of the shard that belong to the pool.
    """

    def __init__(self, shards: Sequence[tuple[Callable[[NDArray[np.int64]], NDArray[Any]], NDArray[np.integer]]]):
        self._read = [read for read, _ in shards]
        self._rows = [np.asarray(rows) for _, rows in shards]
        self._ends = np.cumsum([len(rows) for rows in self._rows], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, positions_B: NDArray[np.int64], /) -> NDArray[Any]:
        """features_B_D in the order asked for. Raises IndexError for a position outside, or for none at all."""
        positions = np.asarray(positions_B)
        if not len(positions) or positions.min() < 0 or positions.max() >= len(self):
            raise IndexError(f"expected positions from 0 to {len(self) - 1}, found {positions}")
        places = np.searchsorted(self._ends, positions, side="right")
        gathered: NDArray[Any] | None = None
        for place in np.unique(places):
            here = np.flatnonzero(places == place)
            start = self._ends[place] - len(self._rows[place])
            rows = self._rows[place][positions[here] - start]
            ascending = np.argsort(rows, kind="stable")  # a file is read front to back
            values = np.asarray(self._read[place](rows[ascending].astype(np.int64)))
            if gathered is None:
                gathered = np.empty((len(positions), *values.shape[1:]), dtype=values.dtype)
            gathered[here[ascending]] = values
        assert gathered is not None  # noqa: S101 -- there is at least one position, checked above
        return gathered


def fit(
    vae: FeatureVAE,
    features: Features,
    classes_N: Any,
    settings: Any = None,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Iterator[Metric]:
    """Trains the network in place on the unlabelled pool (Eq. 10, Adam); yields the losses' means of each epoch.

    features[positions_B] gives features_B_D, so that a pool need not fit into memory; classes_N are the classifier's
    predictions, as indices. On a small pool epochs are added until `min_steps` steps are reached. Training happens
    while the values are taken. The same seed, pool and number of threads give the same bits on a CPU.

    Raises UserError for a pool of fewer than two samples, or when the loss is no longer finite; ValueError if classes
    do not fit the features.
    """
    chosen = vae.settings if settings is None else settings
    classes = np.asarray(classes_N)
    if classes.shape != (len(features),):
        raise ValueError(f"expected one class for each of {len(features)} samples, found shape {classes.shape}")
    if len(classes) < 2 or chosen.batch_size < 2:
        raise UserError(
            f"the VAE cannot be trained on {len(classes)} unlabelled samples in batches of {chosen.batch_size}: "
            "its batch norm needs two; ingest images, or raise vae.batch_size"
        )
    if classes.min() < 0 or classes.max() >= vae.num_classes:
        raise ValueError(f"expected classes from 0 to {vae.num_classes - 1}, found {classes.min()} to {classes.max()}")
    return _train(_Steps(vae, features, classes, chosen, seed=seed, device=torch.device(device)))


def epochs_of(samples: int, settings: Any) -> int:
    """How many epochs a pool of so many samples is trained on: `epochs`, or as many as `min_steps` steps take."""
    epochs: int = max(settings.epochs, -(-settings.min_steps // batches_of(samples, settings.batch_size)))
    return epochs


def _train(steps: "_Steps") -> Iterator[Metric]:
    vae, settings = steps.vae, steps.settings
    vae.to(steps.device).train()
    for _ in range(settings.warmup_epochs):
        with torch.no_grad():
            for positions_B in steps.epoch():
                steps.loss(positions_B)
    optimizer = _adam(vae, settings.learning_rate)
    epochs = epochs_of(steps.samples, settings)
    decay_epoch = round(settings.decay_at * epochs)
    for epoch in range(epochs):
        if epoch == decay_epoch:
            optimizer = _decayed(optimizer, vae, settings)
        losses, sizes = [], []
        for positions_B in steps.epoch():
            loss = steps.loss(positions_B)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            losses.append(torch.stack(loss).detach())
            sizes.append(len(positions_B))
        # Looked at once an epoch: a look at every step would have a GPU wait each time.
        values = torch.stack(losses).double().cpu().numpy()
        wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(wrong):
            raise UserError(
                f"the VAE's loss is no longer finite at step {epoch * steps.per_epoch + wrong[0]} (epoch {epoch + 1}): "
                f"lower vae.learning_rate (now {settings.learning_rate}), or look for extreme values in the features"
            )
        total = np.array(sizes) @ values
        for name, value in zip(Loss._fields, total / steps.samples, strict=True):
            yield Metric(f"vae/{'loss' if name == 'total' else name}", float(value), epoch + 1)
    vae.eval()
    vae.anchors_A_D.copy_(_typical(steps))


@torch.no_grad()
def _typical(steps: "_Steps") -> Tensor:
    """features_A_D of samples with typical posteriors: nearest to the centres that k-means finds; some may be equal."""
    vae = steps.vae
    features_M_D = steps.sample(min(_CANDIDATES, _PLACE_ELEMENTS // (2 * vae.num_latents)))
    mean_M_Z, log_var_M_Z = vae.encode(vae.inputs(features_M_D))
    place_M_Y = torch.cat([mean_M_Z, (0.5 * log_var_M_Z).exp()], dim=1).double().cpu()
    wanted = min(ANCHORS, max(_FEWEST_ANCHORS, _ANCHOR_CLASSES // vae.num_classes))
    centre_A_Y = _centres(place_M_Y, wanted, steps.generator)
    nearest_A = torch.cdist(centre_A_Y, place_M_Y).argmin(dim=1)
    return features_M_D[nearest_A.repeat(-(-ANCHORS // wanted))[:ANCHORS].to(features_M_D.device)]


def _centres(place_M_Y: Tensor, wanted: int, generator: torch.Generator, rounds: int = 10) -> Tensor:
    """centre_A_Y by k-means, begun as k-means++ does; where there are fewer places than centres, some are equal."""
    chosen = [int(torch.randint(len(place_M_Y), (1,), generator=generator))]
    distance_M = torch.full((len(place_M_Y),), torch.inf, dtype=place_M_Y.dtype)
    while len(chosen) < wanted:
        distance_M = torch.minimum(distance_M, (place_M_Y - place_M_Y[chosen[-1]]).square().sum(dim=1))
        if not bool(distance_M.any()):
            chosen.append(chosen[-1])
            continue
        chosen.append(int(torch.multinomial(distance_M, 1, generator=generator)))
    centre_A_Y = place_M_Y[chosen]
    for _ in range(rounds):
        nearest_M = torch.cdist(place_M_Y, centre_A_Y).argmin(dim=1)
        for anchor in torch.unique(nearest_M):
            centre_A_Y[anchor] = place_M_Y[nearest_M == anchor].mean(dim=0)
    return centre_A_Y


class _Steps:
    """Draws the batches of each epoch and evaluates the loss of one."""

    def __init__(
        self,
        vae: FeatureVAE,
        features: Features,
        classes_N: NDArray[Any],
        settings: Any,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.vae, self.settings, self.device = vae, settings, device
        self._features, self._classes_N = features, classes_N
        self.generator = torch.Generator().manual_seed(seed)
        self._dtype = vae.reconstruction.weight.dtype
        self.samples = len(classes_N)
        self.per_epoch = batches_of(self.samples, settings.batch_size)

    def epoch(self) -> Iterator[NDArray[np.int64]]:
        """Every position once, in random order, in batches of nearly equal size, at least two."""
        order = torch.randperm(self.samples, generator=self.generator).numpy()
        yield from np.array_split(order, self.per_epoch)

    def sample(self, most: int) -> Tensor:
        """features_M_D of at most so many samples, drawn at random, read in batches."""
        positions_M = torch.randperm(self.samples, generator=self.generator).numpy()[: max(1, most)]
        parts = np.split(
            np.sort(positions_M), range(self.settings.batch_size, len(positions_M), self.settings.batch_size)
        )
        return torch.cat([to_tensor(self._features[part], self.device, self._dtype) for part in parts])

    def loss(self, positions_B: NDArray[np.int64]) -> Loss:
        features_B_D = to_tensor(self._features[positions_B], self.device, self._dtype)
        classes_B = to_tensor(self._classes_N[positions_B], self.device, torch.int64)
        # Drawn on the CPU, so that a GPU sees the same numbers.
        noise_B_Z = torch.randn(len(positions_B), self.vae.num_latents, generator=self.generator, dtype=torch.float32)
        return self.vae.loss(features_B_D, classes_B, noise_B_Z.to(self.device, self._dtype), self.settings)


def _adam(vae: FeatureVAE, rate: float) -> torch.optim.Adam:
    """Fused: its many small steps, one by one, would take a quarter of the time."""
    return torch.optim.Adam(vae.parameters(), lr=rate, fused=True)


def _decayed(optimizer: torch.optim.Adam, vae: FeatureVAE, settings: Any) -> torch.optim.Adam:
    rate = settings.learning_rate * settings.decay_factor
    if settings.reset_optimizer:
        return _adam(vae, rate)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return optimizer


# -- files ------------------------------------------------------------------------------------------------------


def save(vae: FeatureVAE, path: Path) -> str:
    """Writes weights and configuration as safetensors; returns the file's SHA-256. Same weights, same bytes."""
    config = {
        "format": FORMAT,
        "feature_dims": list(vae.feature_dims),
        "num_classes": vae.num_classes,
        "settings": vae.settings.model_dump(),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in vae.state_dict().items()}
    save_file(weights, path, metadata={"config": json.dumps(config, sort_keys=True)})
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(path: Path, device: torch.device | str = "cpu") -> FeatureVAE:
    """The network that `save` wrote, ready to estimate with. Raises UserError if the file is missing or is not one."""
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {}).get("config", "{}"))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: no VAE can be read from it ({error}); run the round again to make it anew") from None
    if config.get("format") != FORMAT:
        raise UserError(f"{path}: not written as {FORMAT}; run the round again to make it anew")
    with torch.random.fork_rng(devices=[]):
        vae = FeatureVAE(config["feature_dims"], config["num_classes"], **config["settings"])
    vae.to(next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point()))
    vae.load_state_dict({"anchors_A_D": vae.anchors_A_D} | weights)  # files of old have none
    return vae.to(device).eval()


# -- layers -----------------------------------------------------------------------------------------------------


def _settings_of(keywords: dict[str, Any]) -> VaeSettings:
    unknown = sorted(set(keywords) - set(VaeSettings.model_fields))
    if unknown:
        known = ", ".join(VaeSettings.model_fields)
        raise TypeError(f"FeatureVAE: unknown setting {', '.join(unknown)} (known: {known})")
    return VaeSettings(**keywords)


def _head(width: int, settings: VaeSettings) -> nn.Sequential:
    """Brings one stage's features to a common width and range."""
    linear = nn.Linear(width, settings.head_width)
    if settings.heads == "bn_fc_sigmoid":
        return nn.Sequential(nn.BatchNorm1d(width), linear, nn.Sigmoid())
    return nn.Sequential(linear, nn.ReLU(), nn.BatchNorm1d(settings.head_width))


def _body(width: int, settings: VaeSettings) -> nn.Sequential:
    modules: list[nn.Module] = []
    for _ in range(settings.hidden_layers):
        modules += [nn.Linear(width, settings.hidden_width), nn.ReLU()]
        if settings.body == "relu_bn":
            modules.append(nn.BatchNorm1d(settings.hidden_width))
        width = settings.hidden_width
    return nn.Sequential(*modules)
