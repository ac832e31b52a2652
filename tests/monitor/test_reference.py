"""Shipped curves: a band of several seeds, and whose it is."""

import json

import pytest

from mpp.base.errors import DataError
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.monitor.reference import FOLDER, Band, Reference, band_of, find_reference
from mpp.train.run_folder import identity_of

COURSES = [{0: 0.0, 100: 0.2, 200: 0.4}, {0: 0.1, 100: 0.1, 200: 0.5, 300: 9.0}, {0: 0.2, 100: 0.6, 200: 0.6}]


def test_a_band_is_the_least_the_median_and_the_greatest_where_all_runs_have_a_figure():
    assert band_of(COURSES) == Band((0, 100, 200), (0.0, 0.1, 0.4), (0.1, 0.2, 0.5), (0.2, 0.6, 0.6))


def test_between_its_points_it_is_straight_and_beyond_them_there_is_none():
    band = band_of(COURSES)
    assert band.at(150) == pytest.approx((0.25, 0.35, 0.6)) and band.at(0) == (0.0, 0.1, 0.2)
    assert band.at(-1) is None and band.at(201) is None


def test_beside_a_figure_stand_the_ends_of_its_band_alone():
    reference = Reference("demo", "three seeds", {"holdout/skill": band_of(COURSES)})
    assert reference.beside(100, ["holdout/skill", "holdout/loss"]) == {"holdout/skill/low": 0.1, "holdout/skill/high": 0.6}
    assert reference.beside(100, ["train/skill"]) == {} == reference.beside(500, ["holdout/skill"])


def test_it_is_found_by_the_identity_of_its_runs_and_a_damaged_one_is_named(tmp_path):
    bands = {"holdout/skill": band_of(COURSES).__dict__}
    (tmp_path / "some.json").write_text(json.dumps({"identity": "abc", "about": "three seeds", "bands": bands}))
    assert find_reference("abc", tmp_path) == Reference("some", "three seeds", {"holdout/skill": band_of(COURSES)})
    assert find_reference("abd", tmp_path) is None
    (tmp_path / "other.json").write_text('{"identity": "ab')
    with pytest.raises(DataError, match=r"other\.json is damaged"):
        find_reference("abc", tmp_path)


def test_the_identity_is_of_recipe_scale_and_images_and_not_of_seed_place_or_speed():
    images = {"shards": "1234"}
    identity = lambda *words, given=images: identity_of(load(PretrainConfig, "configs/demo_digits.yaml", list(words)), given)
    own = identity()
    assert own == identity("seed=3", "data.shards=elsewhere", "run_dir=other", "system.workers=0", "log.every_steps=7", "evaluate.images=0")
    others = [
        identity(word) for word in ("mask.ratio=0.6", "optim.total_samples=19200", "model.depth=3", "data.flip=true", "optim.base_lr=1e-3")
    ]
    assert len({own, *others, identity(given={"shards": "1235"})}) == 7


def test_the_demo_s_reference_is_that_of_its_config():
    """A key that came later, and leaves a run what it was, does not make it strange (train/run_folder.py, LATER)."""
    shards = (
        "d85f8d186e43580c0e1512e785f489e35f65515888cab34fd5279fe9bf8d9e12"  # sha256 of the manifest of data_prep/demo_digits.py's images
    )
    config = load(PretrainConfig, "configs/demo_digits.yaml", [])
    shipped = json.loads((FOLDER / "demo_digits.json").read_text())["identity"]
    assert identity_of(config, {"shards": shards}) == shipped
    mixed = load(PretrainConfig, "configs/demo_digits.yaml", ["data.shards=[a, b]", "data.weights=[1, 2]"])
    assert identity_of(mixed, {"shards": shards}) != shipped


def test_every_shipped_reference_can_be_read_and_says_what_it_is():
    files = sorted(FOLDER.glob("*.json"))
    assert files
    for path in files:
        found = find_reference(json.loads(path.read_text())["identity"])
        assert (found and found.name == path.stem and "holdout/skill" in found.bands) or "features/linear" in found.bands
        for band in found.bands.values():
            assert all(low <= middle <= high for low, middle, high in zip(band.low, band.middle, band.high, strict=True))
            assert list(band.samples) == sorted(set(band.samples)) and len(band.samples) >= 3
