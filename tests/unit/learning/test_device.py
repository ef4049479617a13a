"""What a GPU is spared, shown without one; and what bfloat16 does to features."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.support.crossings import ELSEWHERE, Crossings
from tests.support.small_networks import random_images, small_network
from vabal.errors import UserError
from vabal.learning import classifier, committee, device, features, recipe
from vabal.learning.needs import Needs
from vabal.settings.learners import ClassifierSettings
from vabal.settings.models import Params

CPU = torch.device("cpu")
AUGMENTED = ClassifierSettings(width=4, batch_size=4, crop_padding=1, horizontal_flip=True, imbalance="balanced")


def epoch(samples: int, where: torch.device, *, resident: bool = True) -> Crossings:
    """One epoch in batches of four."""
    network = recipe.place(small_network(), where)
    images, labels = torch.from_numpy(random_images(samples)), torch.arange(samples) % 3
    objective = classifier.objective_of(AUGMENTED, labels.numpy(), 3, where)
    if resident:
        images, labels = images.to(where), labels.to(where)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    counted = Crossings()
    with counted:
        recipe.run_epoch(
            network,
            optimizer,
            images,
            labels,
            AUGMENTED,
            objective,
            0.0,
            largest_gradient=1.0,
            generator=torch.Generator().manual_seed(0),
            device=where,
            precision=torch.float32,
        )
    return counted


def test_no_step_of_training_reads_a_number_and_only_where_to_cut_and_mirror_is_sent() -> None:
    few, many = epoch(8, ELSEWHERE), epoch(24, ELSEWHERE)
    assert (few.copies, many.copies) == (1 + 2 * 2, 1 + 2 * 6)  # the order, and two kinds of draws a step
    assert few.reads == many.reads == epoch(24, CPU).reads  # the seed of dropout, on the CPU


def test_a_pool_that_does_not_fit_is_sent_batch_by_batch() -> None:
    assert epoch(24, ELSEWHERE, resident=False).copies == 2 * 6  # images and labels


def test_what_fits_is_where_its_batches_are_made_unless_images_are_changed_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, labels = random_images(8), torch.arange(8)

    def places(settings: ClassifierSettings) -> set[str]:
        return {values.device.type for values in recipe.pool_of(images, labels, settings, ELSEWHERE)}

    assert places(AUGMENTED) == {"meta"}
    assert places(AUGMENTED.model_copy(update={"augmentation": ["turn"]})) == {"cpu"}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * images.nbytes - 1, 0))
    assert not device.fits(images.nbytes, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * images.nbytes, 0))
    assert device.fits(images.nbytes, torch.device("cuda"))


def batches(count: int) -> Iterator[tuple[int, np.ndarray]]:
    images = random_images(4 * count)
    for start in range(0, len(images), 4):
        yield start, images[start : start + 4]


def test_features_and_predictions_read_no_number_however_many_batches_there_are() -> None:
    network = small_network()
    with Crossings() as counted:
        assert len(list(features.describe(network, batches(6)))) == 6
        assert len(classifier.predict(network, (images for _, images in batches(6)))) == 24
    assert (counted.reads, counted.copies) == (0, 0)


def test_a_committee_is_asked_piece_by_piece_and_says_what_it_says_of_a_batch_by_itself() -> None:
    first = small_network()
    networks = committee.build(Needs(members=3), first.config, first=first, seed=0)
    names = np.array([f"s{row}" for row in range(24)])
    with Crossings() as counted:
        parts = list(committee.described(networks, batches(6), CPU, names))
    assert (counted.reads, counted.copies) == (0, 0)
    for (_, images), part in zip(batches(6), parts, strict=True):
        alone = networks.columns(images)
        assert all(np.array_equal(part[name], alone[name]) for name in alone)
    with torch.no_grad():
        networks.networks["member1"].classifier.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite for s0, s1, s2, s3:"):
        next(committee.described(networks, batches(6), CPU, names))


def test_answers_come_in_order_and_each_before_the_next_is_asked_for_on_a_cpu() -> None:
    asked: list[int] = []

    def answers() -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
        for item in range(5):
            asked.append(item)
            yield item, (torch.full((2,), item), torch.zeros(item))

    for item, (first, second) in device.brought(answers()):
        assert asked == list(range(item + 1))
        assert (first.tolist(), len(second)) == ([item, item], item)
    assert len(asked) == 5


@pytest.mark.parametrize(
    ("wish", "able", "expected"),
    [
        ("auto", False, torch.float32),
        ("auto", True, torch.bfloat16),
        ("float32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_where_a_gpu_multiplies_it(
    wish: str, able: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: able)
    settings = Params.model_validate({"compute": {"precision": wish}})
    assert device.precision_of(settings, torch.device("cuda")) == expected
    if wish == "auto":
        assert device.precision_of(settings, CPU) == torch.float32


def test_bfloat16_moves_features_by_a_hundredth_and_rounds_no_logit_to_eight_digits() -> None:
    network = small_network(width=16)

    def said(precision: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
        with device.multiplying(CPU, precision):
            parts = list(features.describe(network, batches(16)))
        return tuple(np.concatenate([part[kind] for part in parts]) for kind in (1, 2))  # type: ignore[return-value]

    (exact, logits), (coarse, coarse_logits) = said(torch.float32), said(torch.bfloat16)
    assert coarse.dtype == coarse_logits.dtype == np.float32
    off = np.linalg.norm(coarse - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert 0 < off.max() < 0.01
    assert np.abs(coarse_logits - logits).max() < 0.05 * np.abs(logits).max()
    rounded = torch.from_numpy(coarse_logits).bfloat16().float().numpy()
    assert (rounded != coarse_logits).mean() > 0.9


def test_training_learns_in_bfloat16_what_it_does_in_float32() -> None:
    images, labels = random_images(48), np.arange(48) % 3
    images[labels == 1] //= 4
    images[labels == 2] = 255 - images[labels == 2] // 4
    settings = ClassifierSettings(width=16, epochs=12, batch_size=16, learning_rate=0.05)
    right = {}
    for precision in (torch.float32, torch.bfloat16):
        network = small_network(width=16)
        list(classifier.fit(network, images, labels, settings, seed=0, precision=precision))
        assert {values.dtype for values in network.parameters()} == {torch.float32}
        right[precision] = np.mean(classifier.predict(network, [images]).argmax(axis=1) == labels)
    assert min(right.values()) > 0.9
