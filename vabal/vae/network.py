"""The network, Eq. 7 to Eq. 10, and its file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from vabal.errors import UserError
from vabal.files import file_sha256
from vabal.settings.models import VaeSettings

FORMAT = "vabal.FeatureVAE/1"
ANCHORS = 64  # typical samples that a trained network remembers
_ANCHOR_CLASSES = 6400  # fewer anchors with many classes, of each of which the estimate keeps a vector an anchor ...
_FEWEST_ANCHORS = 16  # ... but no fewer than these


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
    `anchored` of `vabal.probabilities` takes them. `pool_size` is how many samples that pool had. Before training both
    are zero.
    """

    anchors_A_D: Tensor
    pool_size: Tensor

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
        self.register_buffer("pool_size", torch.zeros((), dtype=torch.int64))

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


def anchors_of(num_classes: int) -> int:
    """How many different anchors a network of so many classes remembers at most."""
    return min(ANCHORS, max(_FEWEST_ANCHORS, _ANCHOR_CLASSES // num_classes))


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
    return file_sha256(path)


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
    of_old = {"anchors_A_D": vae.anchors_A_D, "pool_size": vae.pool_size}  # whose files have none
    vae.load_state_dict(of_old | weights)
    return vae.to(device).eval()
