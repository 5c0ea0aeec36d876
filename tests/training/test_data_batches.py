"""Augmentation, the order of samples, and batches: what they keep and what they depend on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import camvid, write_labels
from torch import Tensor
from torchvision import tv_tensors

from attnops.models import create_model
from attnops.training.data import SegmentationData, Shapes, check_data, open_data
from attnops.training.data.augment import (
    MEAN_COLOUR,
    PhotometricDistortion,
    RandomScaledCrop,
    base_scale,
    training_transform,
)
from attnops.training.data.order import SharedOut, StreamBatches, shuffled
from attnops.training.engine import Normalization, normalization_of

SIZE = (48, 60)


def sample(seed: int = 0, size=SIZE, classes: int = 5):
    """An image whose channels are functions of the mask, smooth blocks of 6 pixels."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, classes, (-(-size[0] // 6), -(-size[1] // 6)))
    mask = torch.from_numpy(blocks).repeat_interleave(6, 0).repeat_interleave(6, 1)
    mask = mask[: size[0], : size[1]].to(torch.uint8)
    image = (mask * (160 // (classes - 1)) + 20).expand(3, *size).contiguous()
    return tv_tensors.Image(image), tv_tensors.Mask(mask)


@pytest.mark.parametrize("crop", [(32, 40), (48, 60), (80, 30)])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 2.0)])
def test_image_and_mask_go_together(crop, scales):
    """Where the colour passes the middle between two classes, the label changes."""
    transform = training_transform(crop, scales, photometric=False)
    for seed in range(12):
        torch.manual_seed(seed)
        image, mask = transform(*sample(seed, classes=2))
        assert isinstance(image, tv_tensors.Image) and isinstance(mask, tv_tensors.Mask)
        assert image.shape == (3, *crop) and mask.shape == crop
        assert image.dtype == mask.dtype == torch.uint8
        image, mask = image.as_subclass(Tensor).int(), mask.as_subclass(Tensor).int()
        padded = mask == 255
        for channel, colour in enumerate(MEAN_COLOUR):
            assert (image[channel][padded] == colour).all()
        agree = ((image[0] > 100) == (mask == 1)) | padded
        assert agree.float().mean() > (0.999 if scales == (1.0, 1.0) else 0.93)


def test_scale_one_is_a_part_of_the_image():
    image, mask = sample(3)
    image = tv_tensors.Image(torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8))
    for seed in range(10):
        torch.manual_seed(seed)
        cut, labels = RandomScaledCrop((20, 31), (1.0, 1.0))(image, mask)
        found = [
            (top, left)
            for top, left in itertools.product(range(29), range(30))
            if torch.equal(image[:, top : top + 20, left : left + 31], cut)
        ]
        assert len(found) == 1
        (top, left) = found[0]
        assert torch.equal(mask[top : top + 20, left : left + 31], labels)


def test_crops_lie_anywhere_and_scales_are_even():
    transform = RandomScaledCrop((16, 16), (0.5, 2.0), cat_max_ratio=1)
    scales, tops = [], []
    for seed in range(400):
        torch.manual_seed(seed)
        params = transform.make_params([sample()[1]])
        rows = params["box"][0]
        scales.append(16 / (rows.stop - rows.start))
        tops.append(rows.start / (SIZE[0] - (rows.stop - rows.start)))
    assert 0.45 < min(scales) < 0.55 and 1.8 < max(scales) < 2.1
    assert abs(np.mean(scales) - 1.25) < 0.06  # uniform on 0.5 to 2
    assert min(tops) == 0 and max(tops) == 1 and abs(np.mean(tops) - 0.5) < 0.05


@pytest.mark.parametrize("ratio", [0.75, 1.0])
def test_crops_of_one_class_are_drawn_again(ratio):
    """Nine tenths of the image are one class: few crops would have another in them."""
    mask = torch.zeros(100, 100, dtype=torch.uint8)
    mask[:, 90:] = 1
    mask[:10] = 255  # counts for nothing
    image = tv_tensors.Image(torch.zeros(3, 100, 100, dtype=torch.uint8))
    transform = RandomScaledCrop((20, 20), (1.0, 1.0), ratio)
    mixed = 0
    for seed in range(60):
        torch.manual_seed(seed)
        labels = transform(image, tv_tensors.Mask(mask))[1]
        counts = torch.bincount(labels.flatten().int(), minlength=256)[:255]
        mixed += bool(counts.max() < 0.75 * counts.sum())
    assert mixed > 30 if ratio == 0.75 else mixed < 20


def test_a_scale_relative_to_a_base_size():
    assert base_scale((1000, 500), (2048, 512)) == 1.024
    assert base_scale((500, 2000), (2048, 512)) == 1.024
    assert base_scale((100, 3000), (2048, 512)) == 2048 / 3000
    transform = RandomScaledCrop((24, 24), (1.0, 1.0), base_size=(120, 96))
    rows = transform.make_params([sample()[1]])["box"][0]
    assert rows.stop - rows.start == 12  # the image is scaled by 2


def test_photometric_distortion_changes_colours_alone():
    image, mask = sample()
    image = tv_tensors.Image(torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8))
    changed = 0
    for seed in range(20):
        torch.manual_seed(seed)
        out, labels = PhotometricDistortion()(image, mask)
        assert labels is mask and out.dtype == torch.uint8 and isinstance(out, tv_tensors.Image)
        changed += not torch.equal(out, image)
    assert 15 <= changed <= 20  # 15/16 of them
    for name, value in (("brightness", 32.0), ("contrast", 1.5)):
        params = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, name: value}
        out = PhotometricDistortion().transform(image, params)
        wanted = image.int() + 32 if name == "brightness" else (image.double() * 1.5).round()
        assert torch.equal(out.int(), wanted.clamp(0, 255).int())


@pytest.mark.parametrize(
    "options", [{"crop_size": (0, 4)}, {"scale_range": (2.0, 1.0)}, {"cat_max_ratio": 0.0}]
)
def test_refused_augmentation(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        training_transform(**{"crop_size": (8, 8), **options})


class TestOrder:
    def test_an_epoch_has_every_sample_once(self):
        places = itertools.chain.from_iterable(StreamBatches(10, 4, seed=3))
        epochs = [list(itertools.islice(places, 10)) for _ in range(3)]
        for number, epoch in enumerate(epochs):
            assert {place.epoch for place in epoch} == {number}
            assert sorted(place.index for place in epoch) == list(range(10))
        orders = [[place.index for place in epoch] for epoch in epochs]
        assert orders[0] != orders[1] != orders[2]
        assert orders[0] == shuffled(10, 3, 0).tolist()

    @pytest.mark.parametrize("consumed", [4, 12, 40])
    def test_it_goes_on_where_it_stopped(self, consumed):
        whole = list(itertools.islice(StreamBatches(10, 4, seed=3), 20))
        rest = list(itertools.islice(StreamBatches(10, 4, seed=3, start=consumed), 5))
        assert rest == whole[consumed // 4 : consumed // 4 + 5]

    def test_processes_share_the_batches_of_one(self):
        one = list(itertools.islice(StreamBatches(10, 6, start=12), 7))
        parts = [
            list(itertools.islice(StreamBatches(10, 3, rank=rank, world_size=2, start=12), 7))
            for rank in (0, 1)
        ]
        assert [a + b for a, b in zip(*parts, strict=True)] == one

    @pytest.mark.parametrize("count, world", [(7, 3), (6, 3), (2, 4)])
    def test_evaluation_sees_every_sample_once(self, count, world):
        split = Shapes(size=(16, 16), counts={"val": count}).split("val")
        shares = [SharedOut(split, rank, world) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        seen = [share[i] for share in shares for i in range(len(share))]
        real = [image for image, mask in seen if (mask != 255).any()]
        assert len(real) == count
        assert all(any(torch.equal(image, x) for x in real) for image, _ in split_items(split))


def split_items(split):
    return [split[i] for i in range(len(split))]


def batches(root, count, consumed=0, **options):
    data = SegmentationData(root, crop_size=(16, 20), batch_size=4, **options)
    data.set_progress(consumed)
    return list(itertools.islice(data.train_dataloader(), count))


def test_batches_depend_on_the_seed_and_the_step_alone(tmp_path):
    root = str(camvid(tmp_path, 5))
    torch.manual_seed(1)
    wanted = batches(root, 5, num_workers=0, seed=2)
    images, masks = wanted[0]
    assert images.shape == (4, 3, 16, 20) and images.dtype == torch.uint8
    assert masks.shape == (4, 16, 20) and masks.dtype == torch.int64
    assert type(images) is type(masks) is Tensor
    assert set(masks.unique().tolist()) <= {*range(11), 255}
    state = torch.random.get_rng_state()
    again = batches(root, 3, consumed=8, num_workers=2, seed=2)  # after a stop, with workers
    assert torch.equal(state, torch.random.get_rng_state())
    for before, after in zip(wanted[2:], again, strict=True):
        assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    other = batches(root, 1, num_workers=0, seed=3)
    assert not torch.equal(other[0][0], wanted[0][0])
    # The second epoch crops the same images otherwise.
    assert len({images.numpy().tobytes() for batch, _ in wanted for images in batch}) == 20


def test_evaluation_batches_are_whole_images(tmp_path):
    data = SegmentationData(str(camvid(tmp_path, 3)), num_workers=0, limit=2, batch_size=1)
    assert data.info.name == "camvid" and data.steps_per_epoch == 2
    for loader, split in ((data.val_dataloader(), "val"), (data.test_dataloader(), "test")):
        found = list(loader)
        assert len(found) == 2
        for (images, masks), (image, mask) in zip(
            found, split_items(data.data.split(split)), strict=False
        ):
            assert torch.equal(images[0], image) and torch.equal(masks[0], mask.long())
    for options in ({"batch_size": 0}, {"limit": 0}, {"num_workers": -1}):
        with pytest.raises(ValueError, match="must be positive"):
            SegmentationData(str(tmp_path), **options)


class TestShapes:
    def test_the_same_seed_draws_the_same(self):
        first, again = Shapes(), Shapes()
        for index in (0, 5):
            for a, b in zip(first.split("val")[index], again.split("val")[index], strict=True):
                assert torch.equal(a, b)
        assert not torch.equal(first.split("val")[0][0], first.split("val")[1][0])
        assert not torch.equal(first.split("val")[0][0], first.split("train")[0][0])
        assert not torch.equal(first.split("val")[0][0], Shapes(seed=1).split("val")[0][0])

    def test_colours_do_not_tell_the_class(self):
        """Means and deviations of the colours are the same for all classes."""
        split = Shapes(size=(64, 64)).split("train")
        pixels = {label: [] for label in range(7)}
        for image, mask in (split[index] for index in range(120)):
            values = image.float().flatten(1)
            for label in mask.unique().tolist():
                inside = values[:, mask.flatten() == label]
                pixels[label].append(torch.cat([inside.mean(1), inside.std(1, correction=0)]))
        means = torch.stack([torch.stack(pixels[label]).mean(0) for label in range(7)])
        assert ((means - means.mean(0)).abs() < 12).all()  # of 255; single images spread by 50
        assert all(len(found) > 40 for found in pixels.values())


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels(tmp_path, channels):
    """Grey is made of colours; four channels are those of the file, augmented alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    write_labels(tmp_path / "masks/1.png", (0, 1, 2), (30, 40))
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images/1.tif")
    data = open_data(tmp_path, channels=channels)
    check_data(data, cached=False).raise_faults()
    image, _ = data.split("train")[0]
    if channels == 4:
        assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))
    else:
        grey = pixels[..., :3] @ np.array([0.299, 0.587, 0.114])
        assert np.abs(image[0].numpy() - grey).max() <= 1
    options = {"crop_size": (64, 64), "num_workers": 0, "channels": channels}
    plain = SegmentationData(str(tmp_path), photometric=False, **options)
    images, masks = next(iter(plain.train_dataloader()))
    assert images.shape == (8, channels, 64, 64) and (masks == 255).any()
    assert (images[:, -1][masks == 255] == 115).all()  # padding
    distorted, _ = next(iter(SegmentationData(str(tmp_path), **options).train_dataloader()))
    assert distorted.shape == images.shape and not torch.equal(distorted, images)
    with pytest.raises(ValueError, match="has 4 channels, expected 2"):
        open_data(tmp_path, channels=2).split("train")[0]


def test_normalisation_of_other_channels():
    colours = Normalization((1.0, 2.0, 6.0), (1.0, 1.0, 4.0), "bgr")
    assert colours.fitted(3) is colours
    assert colours.fitted(1) == Normalization((3.0,), (2.0,))
    assert colours.fitted(4) == Normalization((6.0, 2.0, 1.0, 3.0), (4.0, 1.0, 1.0, 2.0))
    network = create_model("segnext_t", num_classes=2, in_channels=1)
    assert len(normalization_of(network).mean) == 1
