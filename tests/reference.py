"""The method once more: slow, literal, in float64, with loops over samples, draws and classes.

Nothing of `vabal.probabilities` is used; of `vabal.vae` only the names of the weights. Noise is passed in, so that both
see the same draws.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
GUARDED = 1e6  # what a score loses where the guard shuts a sample out


class ReferenceVAE:
    """The network of `FeatureVAE` in evaluation, one sample at a time, from its weights."""

    def __init__(self, vae: Any) -> None:
        self.weights: dict[str, Array] = {
            name: tensor.detach().cpu().double().numpy() for name, tensor in vae.state_dict().items()
        }
        self.settings = vae.settings
        self.feature_dims = vae.feature_dims
        self.classes = vae.num_classes

    def linear(self, name: str, x: Array) -> Array:
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def batch_norm(self, name: str, x: Array) -> Array:
        mean, variance = self.weights[f"{name}.running_mean"], self.weights[f"{name}.running_var"]
        scaled = (x - mean) / np.sqrt(variance + 1e-5)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def inputs(self, features_D: Array) -> Array:
        parts, start = [], 0
        for stage, width in enumerate(self.feature_dims):
            x = features_D[start : start + width]
            start += width
            if self.settings.heads == "bn_fc_sigmoid":
                x = self.linear(f"heads.{stage}.1", self.batch_norm(f"heads.{stage}.0", x))
                parts.append(1 / (1 + np.exp(-x)))
            else:
                x = np.maximum(self.linear(f"heads.{stage}.0", x), 0)
                parts.append(self.batch_norm(f"heads.{stage}.2", x))
        return np.concatenate(parts)

    def body(self, name: str, x: Array) -> Array:
        modules = 3 if self.settings.body == "relu_bn" else 2
        for layer in range(self.settings.hidden_layers):
            x = np.maximum(self.linear(f"{name}.{modules * layer}", x), 0)
            if self.settings.body == "relu_bn":
                x = self.batch_norm(f"{name}.{modules * layer + 2}", x)
        return x

    def encode(self, x: Array) -> tuple[Array, Array]:
        hidden = self.body("encoder", x)
        return self.linear("mean", hidden), self.linear("log_var", hidden)

    def decode(self, z: Array) -> Array:
        return self.linear("reconstruction", self.body("decoder", z))

    def block(self, n: int) -> slice:
        """C_n: the latent dimensions of class n."""
        width = self.settings.latent_per_class
        return slice(n * width, (n + 1) * width)

    def energy(self, z: Array, n: int) -> float:
        total = 0.0
        for z_j in z[self.block(n)]:
            if self.settings.energy == "square":
                total += z_j**2
            elif self.settings.energy == "absolute":
                total += abs(z_j)
            else:
                total += 1 / (1 + math.exp(-z_j))
        return total

    def predict(self, z: Array) -> int:
        """Eq. 7."""
        return int(np.argmin([self.energy(z, n) for n in range(self.classes)]))


def kl(mean: Array, log_var: Array) -> float:
    return float(sum(0.5 * (m**2 + math.exp(v) - 1 - v) for m, v in zip(mean, log_var, strict=True)))


def likelihood(vae: Any, features: Array, noise_T_Z: Array, settings: Any) -> tuple[Array, NDArray[np.int64]]:
    """Eq. 9 with block n masked: log_likelihood_N_C, and the class most often drawn."""
    net = ReferenceVAE(vae)
    averaged = settings.likelihood_reduction == "mean"
    log_likelihood = np.zeros((len(features), net.classes))
    most_drawn = np.zeros(len(features), dtype=np.int64)
    for i, features_D in enumerate(features):
        x = net.inputs(features_D)
        mean, log_var = net.encode(x)
        votes = [0] * net.classes
        for noise_Z in noise_T_Z:
            z = mean + np.exp(0.5 * log_var) * noise_Z
            votes[net.predict(z)] += 1
            for n in range(net.classes):
                masked = z.copy()
                masked[net.block(n)] = 0
                error = float(np.sum((net.decode(masked) - x) ** 2))
                if averaged:
                    error /= len(x)
                if net.settings.reconstruction_half:
                    error *= 0.5
                log_likelihood[i, n] += -error / len(noise_T_Z)
        for n in range(net.classes):
            divergence = kl(mean, log_var) if settings.likelihood_kl != "none" else 0.0
            if settings.likelihood_kl == "unmasked":
                divergence -= kl(mean[net.block(n)], log_var[net.block(n)])
            log_likelihood[i, n] -= divergence / (len(mean) if averaged else 1)
        most_drawn[i] = votes.index(max(votes))
    return log_likelihood, most_drawn


def class_terms(
    vae: Any,
    labeled: tuple[Array, NDArray[np.int64], Array],
    unlabeled: tuple[Array, Array],
    cross_fitted: tuple[NDArray[np.int64], NDArray[np.int64]],
    settings: Any,
) -> tuple[Array, Array]:
    """log prior (Eq. 12) and log precision (Eq. 11), smoothed; pools as (features, labels, noise_N_T_Z)."""
    net = ReferenceVAE(vae)
    features, labels, noise = labeled
    predicted, correct = np.zeros(net.classes), np.zeros(net.classes)
    for features_D, label, noise_T_Z in zip(features, labels, noise, strict=True):
        for y_hat in _drawn(net, features_D, noise_T_Z):
            predicted[y_hat] += 1 / len(noise_T_Z)
            correct[y_hat] += (y_hat == label) / len(noise_T_Z)
    counted, samples = predicted, len(features)
    if settings.prior_pool == "unlabeled":
        counted, samples = np.zeros(net.classes), len(unlabeled[0])
        for features_D, noise_T_Z in zip(*unlabeled, strict=True):
            for y_hat in _drawn(net, features_D, noise_T_Z):
                counted[y_hat] += 1 / len(noise_T_Z)
    if settings.precision_from == "cross_fitted":
        predicted, correct = np.zeros(net.classes), np.zeros(net.classes)
        for label, y_hat in zip(*cross_fitted, strict=True):
            predicted[y_hat] += 1
            correct[y_hat] += y_hat == label
    s = settings.smoothing
    prior = [(count + s) / (samples + s * net.classes) for count in counted]
    precision = [(hit + s) / (count + s * net.classes) for hit, count in zip(correct, predicted, strict=True)]
    return np.log(prior), np.log(precision)


def _drawn(net: ReferenceVAE, features_D: Array, noise_T_Z: Array) -> list[int]:
    mean, log_var = net.encode(net.inputs(features_D))
    return [net.predict(mean + np.exp(0.5 * log_var) * noise_Z) for noise_Z in noise_T_Z]


def scores(
    log_likelihood: Array,
    log_prior: Array,
    log_precision: Array,
    settings: Any,
    *,
    vae_class: NDArray[np.int64],
    predicted_class: NDArray[np.int64],
    margin: Array,
    posterior: Array | None = None,
) -> Array:
    """Eq. 6 in log space, or the published code's score."""
    scaled = settings.likelihood_weight * _scaled(log_likelihood, settings.likelihood_reduction)
    result = np.zeros(len(scaled))
    for i, row in enumerate(scaled):
        if settings.classes in ("all", "posterior"):
            counted = list(range(len(row)))
        else:
            counted = [int(vae_class[i] if settings.classes == "predicted" else predicted_class[i])]
        log_terms = [
            settings.exponent
            * ((log_prior[n] if settings.use_prior else 0) + (log_precision[n] if settings.use_precision else 0))
            for n in counted
        ]
        if settings.score == "published_code":
            losses = [-row[n] for n in counted]
            result[i] = 1 - sum(loss * math.exp(term) for loss, term in zip(losses, log_terms, strict=True))
        elif settings.classes == "posterior":
            assert posterior is not None
            result[i] = math.log(
                sum(posterior[i, n] / math.exp(row[n] + term) for n, term in zip(counted, log_terms, strict=True))
            )
        else:
            logs = [row[n] + term for n, term in zip(counted, log_terms, strict=True)]
            result[i] = -(max(logs) + math.log(sum(math.exp(value - max(logs)) for value in logs)))
        result[i] += settings.margin_weight * math.log(max(1 - margin[i], 1e-6)) if settings.margin_weight else 0
    levels = [sum(row) / len(row) for row in log_likelihood]
    for i in sorted(range(len(levels)), key=lambda i: levels[i])[: int(settings.guard * len(levels))]:
        result[i] -= GUARDED
    return result


def _scaled(log_likelihood: Array, reduction: str) -> Array:
    if reduction == "standardised":
        standardised: Array = (log_likelihood - log_likelihood.mean(axis=0)) / log_likelihood.std(axis=0)
        return standardised
    if reduction == "contrast":
        level = log_likelihood.mean(axis=1, keepdims=True)
        contrast = log_likelihood - level
        both: Array = contrast / np.sqrt((contrast**2).mean()) + (level - level.mean()) / level.std()
        return both
    return log_likelihood
