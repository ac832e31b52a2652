"""The images before there is a run: enough of them, something to predict, and a loader that keeps up."""

import io

import numpy as np
import pytest
from PIL import Image

from mpp.checks import images
from mpp.checks.images import LoaderRate
from mpp.config.pretrain import PretrainConfig
from mpp.data.augment import Centre
from mpp.data.batch_plan import plan_batch
from mpp.data.crop_dataset import CropDataset
from mpp.data.folder_images import FolderImages
from mpp.data.order import Order
from mpp.data.pixels import StoredPixels
from mpp.data.shards import ShardSet
from mpp.data.training_set import open_training_set
from mpp.data.write_shards import Sample, write_manifest, write_shard
from mpp.recipe.model import build_model

SMALL = {"arch": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 4, "width": 32, "depth": 1, "heads": 2}


def config_of(shards, **more) -> PretrainConfig:
    data = {"shards": str(shards), "holdout_samples": 8, "global_batch": 16} | more.pop("data", {})
    return PretrainConfig.model_validate({"model": SMALL, "data": data, "optim": {"total_samples": 960, "warmup_samples": 0}} | more)


def looked_at(config: PretrainConfig):
    return images.target(build_model(config), config, open_training_set(config))


def of_arrays(folder, arrays):
    """Shards of these images, uint8 [height, width, 3]."""
    folder.mkdir()
    samples = []
    for key, array in enumerate(arrays):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        samples.append(Sample(key, "png", buffer.getvalue(), array.shape[1], array.shape[0], -1))
    counts = np.ones((3, 256), dtype=np.int64)
    part = write_shard(folder, "000000.tar", samples)
    write_manifest(folder, split="train", shards=[part], classes=[], colours=counts, colour_images=1, rejects=0, source={"name": "test"})
    return folder


def of_colours(folder, colours, side: int = 24):
    """Images of one colour each."""
    return of_arrays(folder, [np.full((side, side, 3), colour, np.uint8) for colour in colours])


def test_shards_that_were_opened_are_counted(tiny_shards):
    found = images.shards(ShardSet.open(tiny_shards), 2)
    assert found.verdict == "ok" and "40 images in 3 shards" in found.found and "seen by all 2 processes" in found.found


@pytest.mark.parametrize(("batch", "verdict"), [(16, "ok"), (25, "ok"), (26, "warning"), (101, "warning")])
def test_a_step_that_sees_a_large_part_of_the_set_is_a_warning(batch, verdict):
    found = images.samples(Order((60, 41), batch, 1, 0), 960)
    assert found.verdict == verdict and f"101 training images, {101 // batch} step" in found.found
    if found.fix:
        proposed = int(found.fix.partition("global_batch=")[2].split()[0])
        assert images.samples(Order((60, 41), proposed, 1, 0), 960).verdict == "ok"


def test_the_label_entropy_of_a_target_is_that_of_its_classes(tmp_path):
    """Of the eight colours of a cube's corners, as often: three bits."""
    corners = [(r, g, b) for r in (8, 250) for g in (8, 250) for b in (8, 250)]
    config = config_of(of_colours(tmp_path / "train", corners * 5), data={"holdout_samples": 8})
    found = looked_at(config)
    assert "mean_color, on 32 images: 8 of 512 classes, entropy 3.00 of 9.00 bits, 12% in the most frequent one" in found.found
    assert found.verdict == "FAILED"  # patches of one image tell each other


def test_noise_leaves_something_to_predict_and_one_colour_nothing(tiny_shards, tmp_path):
    assert looked_at(config_of(tiny_shards)).verdict == "ok"
    for target in ("mean_color", "pixels"):
        found = looked_at(config_of(of_colours(tmp_path / target, [(200, 200, 200)] * 40), target={"name": target}))
        assert found.verdict == "FAILED" and "leaves nothing to predict" in found.found
        assert ("100% in the most frequent one" in found.found) == (target == "mean_color")


@pytest.mark.parametrize(("bright", "verdict"), [(0.05, "warning"), (0.4, "ok")])
def test_nearly_one_class_is_a_warning(tmp_path, bright, verdict):
    """Black patches, of which a share is white."""
    rng = np.random.default_rng(0)
    arrays = [np.kron(rng.random((4, 4)) < bright, np.full((4, 4), 255)).astype(np.uint8)[..., None].repeat(3, -1) for _ in range(40)]
    found = looked_at(config_of(of_arrays(tmp_path / "train", arrays), data={"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}))
    assert found.verdict == verdict and "2 of 512 classes" in found.found
    share = int(found.found.partition("% in the most")[0].split()[-1])
    assert abs(share - 100 * (1 - bright)) < 6


def test_images_that_cannot_be_read_fail(make_shards, damage, tmp_path):
    shards = make_shards(tmp_path / "train", [40])
    damage(shards, [0, 7])
    found = looked_at(config_of(shards))
    assert found.verdict == "FAILED" and found.found.startswith("2 of 32 images") and "verify_shards.py" in found.fix


def test_a_target_of_a_teacher_has_nothing_to_count(tiny_shards):
    config = config_of(
        tiny_shards, target={"name": "features", "blocks": 1}, corruption={"name": "replace", "mask": 1.0, "swap": 0.0, "keep": 0.0}
    )
    assert looked_at(config).verdict == "ok"


def test_a_loader_that_does_not_keep_up_is_a_warning_with_the_cores_that_would():
    slow = images.loader(LoaderRate(core=100.0, rank=250.0, workers=3), step=1000.0)
    assert slow.verdict == "warning" and "wait 75% of its time" in slow.found and "11 cores" in slow.fix and "null or 10" in slow.fix
    assert images.loader(LoaderRate(100.0, 1000.0, 11), 1000.0).verdict == "ok"


def test_the_cores_of_a_node_that_is_not_here_are_counted():
    assert images.loader_of_a_node(core=500.0, step=2000.0, per_node=8, cores=40).verdict == "ok"  # 32 and one for each of 8 processes
    assert images.loader_of_a_node(500.0, 2000.0, 8, 39).verdict == "warning"


def test_the_loader_is_timed_in_this_process_and_beside_it(tiny_shards, monkeypatch):
    monkeypatch.setattr(images, "TIMED_SECONDS", 0.02)
    config = config_of(tiny_shards, data={"views": 2})
    sets, plan = open_training_set(config), plan_batch(16, None, 1, 16, 2)
    order = sets.order(config, plan)
    here = images.loader_rate(sets.training, order, plan, 0)
    assert here.core == here.rank > 0
    beside = images.loader_rate(sets.training, order, plan, 1)
    assert beside.rank > 0 and beside.workers == 1


def test_images_in_memory_must_fit_there(tiny_shards):
    sets = open_training_set(config_of(tiny_shards))
    index = ShardSet.open(tiny_shards).index[0:32]
    needed = 2 * 3 * int((index["width"].astype(int) * index["height"]).sum())
    assert images.unmeasured("ram", sets.training, 2, lambda: int(needed / 0.8) + 1).verdict == "ok"
    assert images.unmeasured("ram", sets.training, 2, lambda: int(needed / 0.8) - 1).verdict == "FAILED"


def test_pixels_of_images_without_an_index_are_those_of_some_of_them(tmp_path):
    colours = np.full((12, 20, 3), 90, np.uint8)
    for number in range(300):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(colours).save(path)
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    ids = np.arange(0, 300, 2)
    training = CropDataset(StoredPixels(FolderImages.open(tmp_path), 10**6), Centre(8, 1.0), 0, ids)
    assert images.pixels_of(training) == len(ids) * 12 * 20
