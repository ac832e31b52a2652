"""The eight poses: what they are, which of them are drawn how often and from which bits, and that each is shown as it is written down."""

import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from mpp.base.rng import CROP, Draws
from mpp.data.augment import Augment
from mpp.data.crop import cut, turned
from mpp.data.loader import batches
from mpp.data.poses import QUARTERS, pose_of, posed
from mpp.train.sample_log import SampleLog
from mpp.train.step import images_on_device
from tests.data.masked_images import AUGMENT, SIZE, dataset, sampler

ANY_WAY = replace(AUGMENT, vertical_flip=True, turns=True)
CPU = torch.device("cpu")
BY_HAND = {  # pose -> the picture of numbers 0 to 8, row by row
    0: [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
    1: [[2, 1, 0], [5, 4, 3], [8, 7, 6]],
    2: [[8, 7, 6], [5, 4, 3], [2, 1, 0]],
    3: [[6, 7, 8], [3, 4, 5], [0, 1, 2]],
    4: [[0, 3, 6], [1, 4, 7], [2, 5, 8]],
    5: [[6, 3, 0], [7, 4, 1], [8, 5, 2]],
    6: [[8, 5, 2], [7, 4, 1], [6, 3, 0]],
    7: [[2, 5, 8], [1, 4, 7], [0, 3, 6]],
}


def shown(image: torch.Tensor, flip: bool, vertical_flip: bool, quarters: int) -> torch.Tensor:
    """[C, H, W]: in torch's own words."""
    image = torch.rot90(image, quarters, (1, 2))
    image = image.flip(2) if flip else image
    return image.flip(1) if vertical_flip else image


def poses(augment: Augment, keys) -> list[int]:
    return [augment.draw(Draws(5, CROP, *key)).pose for key in keys]


@pytest.mark.parametrize("pose", range(8))
def test_each_pose_is_the_picture_that_its_number_stands_for_and_exifs_next_orientation(pose):
    images = torch.arange(9).view(1, 1, 3, 3)
    found = posed(images, torch.tensor([pose]))
    assert found[0, 0].tolist() == BY_HAND[pose]
    assert found[0].tolist() == turned(images[0].numpy(), pose + 1).tolist()


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("vertical_flip", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_flips_and_turns_are_torchs_own(flip, vertical_flip, quarters):
    images = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    pose = pose_of(flip, vertical_flip, quarters)
    found = posed(images, torch.tensor([pose, 0]))
    assert torch.equal(found[0], shown(images[0], flip, vertical_flip, quarters)) and torch.equal(found[1], images[1])


def test_in_a_batch_each_image_has_its_own_pose_and_oblong_ones_keep_their_shape():
    images = torch.randint(256, (16, 3, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1)) % 8
    found = images_on_device({"image": images, "pose": order}, CPU)
    assert found.dtype == torch.float32
    for image, pose, ours in zip(images, order.tolist(), found, strict=True):
        assert np.array_equal(turned(image.numpy(), pose + 1), ours.numpy())
    oblong = torch.arange(4 * 6).view(1, 1, 4, 6).expand(4, 1, 4, 6)
    for image, pose in zip(posed(oblong, torch.arange(4)), range(4), strict=True):
        assert np.array_equal(turned(oblong[0].numpy(), pose + 1), image.numpy())


def test_crops_and_flips_are_drawn_as_ever_whatever_is_drawn_beside_them():
    golden = [
        ((0, 0, 0), (152, 4, 464, 322), 1), ((0, 1, 0), (11, 7, 479, 374), 0), ((3, 7, 1), (22, 41, 291, 254), 0),
        ((9, 123456, 2), (50, 51, 299, 297), 0), ((2, 8, 0), (33, 8, 487, 372), 1), ((1, 1, 3), (5, 10, 451, 367), 0),
    ]  # fmt: skip
    for key, box, pose in golden:
        view = AUGMENT.draw(Draws(5, CROP, *key))
        assert (view.box(500, 375), view.pose) == (box, pose)
        assert ANY_WAY.draw(Draws(5, CROP, *key)).box(500, 375) == box
    keys = [(epoch, sample, 0) for epoch in range(3) for sample in range(200)]
    flips = [float(Draws(5, CROP, *key).uniform(41)[-1]) >= 0.5 for key in keys]
    assert poses(AUGMENT, keys) == flips
    assert poses(ANY_WAY, keys) == [pose_of(flip, *_beside(key)) for key, flip in zip(keys, flips, strict=True)]


def _beside(key: tuple[int, int, int]) -> tuple[bool, int]:
    """The golden use of the two numbers behind the flip's."""
    vertical, turn = Draws(5, CROP, *key).uniform(43)[41:]
    return bool(vertical >= 0.5), int(turn // 0.25)


@pytest.mark.parametrize(
    ("flip", "vertical_flip", "turns", "drawn"),
    [
        (False, False, False, {0}), (True, False, False, {0, 1}), (False, True, False, {0, 3}), (True, True, False, {0, 1, 2, 3}),
        (False, False, True, set(QUARTERS)), (True, False, True, set(range(8))), (False, True, True, set(range(8))), (True, True, True, set(range(8))),
    ],
)  # fmt: skip
def test_the_poses_that_are_asked_for_are_equally_frequent_in_an_epoch_and_over_epochs(flip, vertical_flip, turns, drawn):
    augment = replace(AUGMENT, flip=flip, vertical_flip=vertical_flip, turns=turns)
    count = 2000
    for keys in ([(0, sample, 0) for sample in range(count)], [(epoch, 17, 0) for epoch in range(count)]):
        found = Counter(poses(augment, keys))
        assert found.keys() == drawn
        share = 1 / len(drawn)
        assert all(abs(times - count * share) <= 4.5 * (count * share * (1 - share)) ** 0.5 for times in found.values()), found


def test_a_pose_belongs_to_seed_epoch_sample_and_view_whatever_the_batch_and_the_loader_process(tiny_shards):
    data = replace(dataset(tiny_shards), augment=ANY_WAY, views=2)
    alone = data.batch([(2, 7, 40)])["pose"]
    assert torch.equal(data.batch([(2, 9, 2), (0, 7, 4), (2, 7, 900)])["pose"][4:], alone)
    assert alone.tolist() == poses(ANY_WAY, [(2, 7, 0), (2, 7, 1)])
    data = replace(data, views=1)
    found = {}
    for world, workers in ((1, 0), (3, 1)):
        parts = [batch for rank in range(world) for batch in batches(data, sampler(data, 0, 2, rank, world), workers, pin_memory=False)]
        found[world] = {
            (position, sample): pose for part in parts for position, sample, pose in zip(*map(torch.Tensor.tolist, (part["position"], part["sample"], part["pose"])), strict=True)
        }  # fmt: skip
    assert found[1] == found[3] and len(found[1]) == 24 and len(set(found[1].values())) == 8


def test_views_that_differ_in_their_mask_share_the_pose(tiny_shards):
    data = replace(dataset(tiny_shards), augment=ANY_WAY, views=4)
    keys = [(0, sample, 4 * sample) for sample in range(12)]
    shared, own = (replace(data, differ_in=differ).batch(keys)["pose"].view(12, 4) for differ in ("mask", "crop"))
    assert torch.equal(shared, own[:, :1].expand(12, 4)) and len(set(shared[:, 0].tolist())) > 4
    assert not torch.equal(shared, own)


def test_the_sample_log_says_which_pose_each_image_is_shown_in(tiny_shards, tmp_path):
    data = replace(dataset(tiny_shards), augment=ANY_WAY)
    batch = data.batch([(1, sample, sample) for sample in range(20)])
    SampleLog(tmp_path, 0).note(batch)
    images, source, seen = images_on_device(batch, CPU), data.pixels.source, set()
    for image, line in zip(images, (tmp_path / "samples.rank0.tsv").read_text().splitlines(), strict=True):
        _, _, sample, *box, pose, _, pixels = line.split("\t")
        left, top, right, bottom = map(int, box)
        width, height = source.size_of(int(sample))
        (crop,) = cut(source.read(int(sample)), width, height, [(left, top, right, bottom)], SIZE)
        assert f"{zlib.crc32(crop):08x}" == pixels
        assert np.array_equal(turned(crop, int(pose) + 1), image.numpy())
        seen.add(int(pose))
    assert len(seen) >= 7
