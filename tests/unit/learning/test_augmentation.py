"""Augmentation: each kind does what its name says, to each image by itself, and only where it is asked for."""

import pytest
import torch
from torch import Tensor

from vabal.learning import augmentation, recipe
from vabal.settings.learners import ClassifierSettings

KINDS = ("crop", "mirror", "turn", "jitter", "erase")


def images_N_H_W_K(channels: int, count: int = 64) -> Tensor:
    """The same image so many times: pixels that all differ, and none of them black."""
    pixels = torch.arange(8 * 8 * channels, dtype=torch.uint8).reshape(1, 8, 8, channels) + 20
    return pixels.expand(count, -1, -1, -1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_images_keep_their_shape_and_type_and_each_is_changed_by_itself(kind: str, channels: int) -> None:
    images = images_N_H_W_K(channels)
    torch.manual_seed(0)
    changed = augmentation.changed(images, [kind])
    torch.manual_seed(0)
    assert torch.equal(changed, augmentation.changed(images, [kind]))
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert len({tuple(image.flatten().tolist()) for image in changed}) > 1


def test_mirrored_images_are_the_image_or_its_mirror_and_turned_ones_any_of_eight() -> None:
    (image,) = images_N_H_W_K(1, 1)
    turned = [torch.rot90(image, quarter, (0, 1)) for quarter in range(4)]
    eight = [*turned, *(view.flip(1) for view in turned)]
    torch.manual_seed(0)
    for kind, views in (("mirror", [image, image.flip(1)]), ("turn", eight)):
        found = augmentation.changed(images_N_H_W_K(1, 200), [kind])
        seen = {index for one in found for index, view in enumerate(views) if torch.equal(one, view)}
        assert seen == set(range(len(views)))
        assert all(any(torch.equal(one, view) for view in views) for one in found)


def test_a_part_is_wiped_out_and_a_cut_out_is_enlarged() -> None:
    torch.manual_seed(0)
    erased = augmentation.changed(images_N_H_W_K(1), ["erase"])
    assert (erased == 0).any()
    kept = erased != 0
    assert torch.equal(erased[kept], images_N_H_W_K(1)[kept])
    cut = augmentation.changed(images_N_H_W_K(1), ["crop"]).float()
    spread = cut.amax(dim=(1, 2, 3)) - cut.amin(dim=(1, 2, 3))
    assert float(spread.min()) < 60  # of 63 grey levels, some are cut off
    assert (cut[:, -1, -1] > cut[:, 0, 0]).all()  # neither mirrored nor turned


def test_it_is_part_of_an_epoch_where_the_setting_names_it() -> None:
    images = images_N_H_W_K(1)
    assert recipe.augment(images, ClassifierSettings(), torch.Generator()) is images
    changed = recipe.augment(images, ClassifierSettings(augmentation=["turn"]), torch.Generator())
    assert not torch.equal(changed, images)
