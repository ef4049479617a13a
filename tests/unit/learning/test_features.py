import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tests.support.small_networks import random_images, small_network
from vabal.errors import UserError
from vabal.images.rows import RowWriter, read_rows, row_batches, shape_of
from vabal.learning.features import extract, feature_batches
from vabal.learning.network import ResNetClassifier


@pytest.fixture(scope="module")
def network() -> ResNetClassifier:
    return small_network()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return random_images(23)


def batches(images: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(images), size):
        yield start, images[start : start + size]


def test_the_files_hold_what_the_network_computes_in_the_order_of_the_rows(
    network: ResNetClassifier, images: np.ndarray, tmp_path: Path
) -> None:
    network.train()
    extract(network, batches(images, 10), 23, tmp_path)
    features, logits = np.load(tmp_path / "features.npy"), np.load(tmp_path / "logits.npy")
    assert features.dtype == logits.dtype == np.float32
    with torch.inference_mode():
        expected = network.eval().stages(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(features, expected[0].numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits, expected[1].numpy(), rtol=1e-5, atol=1e-6)


def test_extraction_leaves_the_network_as_it_was(network: ResNetClassifier, images: np.ndarray, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    extract(network, batches(images, 10), 23, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_read_only_batch_is_taken_without_a_warning(
    network: ResNetClassifier, images: np.ndarray, tmp_path: Path
) -> None:
    frozen = images.copy()
    frozen.flags.writeable = False
    extract(network, batches(frozen, 10), 23, tmp_path)
    assert shape_of(tmp_path / "features.npy") == (23, 60)


@pytest.mark.parametrize("claimed", [22, 24])
def test_more_or_fewer_rows_than_the_shard_has_are_refused_and_the_files_cannot_be_read(
    network: ResNetClassifier, images: np.ndarray, tmp_path: Path, claimed: int
) -> None:
    with pytest.raises(ValueError, match="rows"):
        extract(network, batches(images, 10), claimed, tmp_path)
    with pytest.raises(UserError, match="incomplete"):
        list(feature_batches(tmp_path, 10))


def test_batches_out_of_order_are_refused(network: ResNetClassifier, images: np.ndarray, tmp_path: Path) -> None:
    first, second, third = batches(images, 10)
    with pytest.raises(ValueError, match="starts at row 10, found 20"):
        extract(network, [first, third, second], 23, tmp_path)


def test_a_feature_that_is_not_finite_is_refused(images: np.ndarray, tmp_path: Path) -> None:
    network = ResNetClassifier(num_classes=3, image_size=8, channels=1, width=4)
    with torch.no_grad():
        network.classifier.bias[0] = float("inf")
    with pytest.raises(UserError, match=r"^a logit is not finite for row 0, row 1, .*: look at these images, and"):
        extract(network, batches(images, 10), 23, tmp_path)
    names = np.array([f"s{row}" for row in range(23)])
    with pytest.raises(UserError, match=r"^a logit is not finite for s0, s1, "):
        extract(network, batches(images, 10), 23, tmp_path, sample_ids=names)


def test_an_error_while_reading_a_batch_comes_through_and_no_thread_is_left(
    network: ResNetClassifier, images: np.ndarray, tmp_path: Path
) -> None:
    def failing() -> Iterator[tuple[int, np.ndarray]]:
        yield 0, images[:10]
        raise UserError("shard cut short")

    with pytest.raises(UserError, match="shard cut short"):
        extract(network, failing(), 23, tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_a_shard_without_rows_makes_files_without_rows(network: ResNetClassifier, tmp_path: Path) -> None:
    extract(network, [], 0, tmp_path)
    assert np.load(tmp_path / "features.npy").shape == (0, 60)
    assert list(feature_batches(tmp_path, 10)) == []


def test_batches_are_read_back_whole_whatever_their_size(
    network: ResNetClassifier, images: np.ndarray, tmp_path: Path
) -> None:
    extract(network, batches(images, 10), 23, tmp_path)
    for size in (1, 7, 23, 100):
        parts = list(feature_batches(tmp_path, size))
        assert [part.start for part in parts] == list(range(0, 23, size))
        features = np.concatenate([part.features_N_D for part in parts])
        logits = np.concatenate([part.logits_N_C for part in parts])
        assert np.array_equal(features, np.load(tmp_path / "features.npy"))
        assert np.array_equal(logits, np.load(tmp_path / "logits.npy"))


def test_single_rows_are_read_in_the_order_asked_for(tmp_path: Path) -> None:
    values = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.save(tmp_path / "a.npy", values)
    rows = [7, 0, 7, 3]
    assert np.array_equal(read_rows(tmp_path / "a.npy", rows), values[rows])
    with pytest.raises(IndexError, match="row 10 of 10"):
        read_rows(tmp_path / "a.npy", [10])
    with pytest.raises(IndexError, match="row -1 of 10"):
        read_rows(tmp_path / "a.npy", [-1])


def test_one_dimensional_integers_are_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "vae_class.npy"
    with RowWriter(path, 5, None, "<i4") as writer:
        writer.append(np.array([1, 2, 3]))
        writer.append(np.array([4, 5]))
    assert np.load(path).tolist() == [1, 2, 3, 4, 5]
    assert np.load(path).dtype == np.int32
    assert [rows.tolist() for _, rows in row_batches(path, 3)] == [[1, 2, 3], [4, 5]]


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"rows of shape \(1, 3\) do not fit behind 0 of 2 rows"),
        RowWriter(tmp_path / "a.npy", 2, 2) as writer,
    ):
        writer.append(np.zeros((1, 3)))


def test_a_damaged_or_missing_file_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with pytest.raises(UserError, match=r"a\.npy: cannot be read: No such file"):
        shape_of(path)
    path.write_bytes(b"not an array")
    with pytest.raises(UserError, match=r"a\.npy: not an array of rows"):
        shape_of(path)
    np.save(path, np.zeros((4, 2)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"a\.npy: incomplete"):
        list(row_batches(path, 2))


def test_reading_a_large_file_in_batches_does_not_raise_resident_memory(tmp_path: Path) -> None:
    path, rows = tmp_path / "large.npy", 100_000
    with RowWriter(path, rows, 256) as writer:  # 102 MB
        for start in range(0, rows, 10_000):
            writer.append(np.full((10_000, 256), start, dtype=np.float32))
    process = psutil.Process()
    before = process.memory_info().rss
    total, grown = 0.0, 0
    for _, batch in row_batches(path, 1000):
        total += float(batch.sum(dtype=np.float64))
        grown = max(grown, process.memory_info().rss - before)
    assert total == 256 * 10_000 * sum(range(0, rows, 10_000))
    assert grown < 20e6
