"""k-means against scikit-learn, and the program that fits a codebook: what it writes, to what, from which images."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.cluster import KMeans

from mpp.base.errors import ConfigError, DataError
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data.loader import fixed_batches
from mpp.data.shards import ShardSet
from mpp.data.training_set import open_training_set
from mpp.fit_codebook import config_of, main, parse
from mpp.interop.codebook_file import read_codebook
from mpp.mains import fit_codebook
from mpp.mains.fit_codebook import first_centres, kmeans, moved
from mpp.train.step import images_on_device

CPU = torch.device("cpu")
SIZES = ["model.image_size=16", "model.patch_size=4", "workers=0", "data.holdout_samples=8", "data.crop_scale=[0.5, 1]"]


def blobs(points: int = 600, values: int = 5, seed: int = 0) -> torch.Tensor:
    dice = np.random.default_rng(seed)
    return torch.from_numpy(dice.normal(size=(points, values)) + 3 * dice.normal(size=(12, values))[dice.integers(0, 12, points)]).float()


def fitted(points: torch.Tensor, first: torch.Tensor, iterations: int = 300, tolerance: float = 0.0):
    told = []
    found = kmeans(points, first, iterations, tolerance, CPU, lambda *words: told.append(words))
    return found, told


@pytest.mark.parametrize("clusters", [2, 8, 30])
def test_from_the_same_first_centres_k_means_ends_where_scikit_learns_does(clusters):
    points = blobs()
    first = points[:clusters]
    found, told = fitted(points, first)
    oracle = KMeans(clusters, init=first.numpy(), n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(points.numpy())
    assert found.error * points.numel() == pytest.approx(oracle.inertia_, rel=1e-5)
    np.testing.assert_allclose(found.centres.numpy(), oracle.cluster_centers_, atol=1e-4)
    assert found.codes.tolist() == oracle.labels_.tolist()
    errors = [error for _, error, _ in told]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(errors)) and len(errors) == found.moves + 1


def test_iterations_and_tolerance_end_it():
    points = blobs()
    assert fitted(points, points[:30], iterations=2)[0].moves == 2
    few, many = (fitted(points, points[:30], tolerance=tolerance)[0].moves for tolerance in (0.05, 0.0))
    assert 1 <= few < many


def test_a_dead_centre_goes_to_the_point_that_is_farthest_from_its_own():
    points = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    centres = torch.tensor([[1.0], [50.0]])
    codes, errors = fit_codebook.assigned(points, centres, CPU)
    assert codes.tolist() == [0, 0, 0, 0] and errors.tolist() == [1, 0, 1, 64]
    assert moved(points, centres, codes, errors, codes.bincount(minlength=2), CPU).tolist() == [[3.0], [9.0]]
    far = torch.cat([blobs()[:4], torch.full((6, 5), 1e4)])
    assert len(fitted(blobs(), far)[0].codes.unique()) == 10


def test_more_centres_than_different_points_come_to_an_end():
    found, _ = fitted(torch.tensor([[0.0], [1.0]]).repeat(10, 1), torch.zeros(5, 1))
    assert found.error == 0


def test_k_means_plus_plus_finds_groups_that_lie_apart_where_random_points_often_do_not():
    groups = torch.cat(
        [torch.randn(count, 2, generator=torch.Generator().manual_seed(1)) + 1000 * i for i, count in enumerate((60, 10, 10))]
    )
    of_group = lambda centres: len({int(centre[0].round() + 500) // 1000 for centre in centres})
    assert all(of_group(first_centres(groups, 3, "kmeans++", seed)) == 3 for seed in range(10))
    assert any(of_group(first_centres(groups, 3, "random", seed)) < 3 for seed in range(10))


@pytest.mark.parametrize("init", ["kmeans++", "random"])
def test_first_centres_are_different_points_chosen_by_the_seed(init):
    points = blobs()
    found = first_centres(points, 40, init, 0)
    assert all((points == centre).all(1).any() for centre in found) and len(found.unique(dim=0)) == 40
    assert torch.equal(found, first_centres(points, 40, init, 0)) and not torch.equal(found, first_centres(points, 40, init, 1))


def test_points_that_pass_in_parts_give_the_same_centres(monkeypatch):
    points = blobs()
    whole, _ = fitted(points, points[:8], iterations=5)
    monkeypatch.setattr(fit_codebook, "SCORES", 8 * 17)
    parts, _ = fitted(points, points[:8], iterations=5)
    torch.testing.assert_close(parts.centres, whole.centres, atol=1e-5, rtol=1e-5)
    assert torch.equal(parts.codes, whole.codes)


# --------------------------------------------------------------------------------------------------------------------------- the program


def fit(shards: Path, out: Path, *words: str) -> Path:
    assert main([*SIZES, f"data.shards={shards}", f"out={out}", "clusters=9", *words]) == 0
    return out


def test_what_is_written_is_what_was_fitted_and_the_figures_are_those_of_numpy(tiny_shards, tmp_path, capsys):
    out = fit(tiny_shards, tmp_path / "codebook.safetensors", "of={name: pixels, normalise: true}", "patches=160", "patches_an_image=5")
    file = read_codebook(out)
    facts, centres = file.facts, file.centres.double().numpy()
    assert (facts.patch_size, facts.image_size, facts.crop_scale, facts.seed, facts.patches) == (4, 16, (0.5, 1.0), 0, 160)
    assert facts.shards == ShardSet.open(tiny_shards).manifest_hash and facts.of.name == "pixels" and facts.of.normalise
    assert centres.shape == (9, 48) and int(file.counts.sum()) == 160
    with safe_open(str(out), framework="np") as plain:
        assert sorted(plain.keys()) == ["centres", "counts"]

    words = [f"data.shards={tiny_shards}", "data.holdout_samples=8", "data.crop_scale=[0.5, 1]", "model={image_size: 16, patch_size: 4}"]
    sets = open_training_set(load(PretrainConfig, None, words))
    ((batch, weight),) = fixed_batches(sets.holdout, np.array(sets.holdout.pool), 8)
    assert weight.tolist() == [1] * 8
    patches = images_on_device(batch, CPU).double().numpy().reshape(8, 3, 4, 4, 4, 4).transpose(0, 2, 4, 3, 5, 1).reshape(128, 48)
    seen = (patches / 255 - 0.5) / 0.5
    goals = (seen - seen.mean(1, keepdims=True)) / np.sqrt(seen.var(1, ddof=1, keepdims=True) + 1e-6)
    distances = ((goals[:, None] - centres) ** 2).mean(2)
    assert facts.holdout_error == pytest.approx(distances.min(1).mean(), rel=1e-4)
    shares = np.bincount(distances.argmin(1), minlength=9) / 128
    assert facts.perplexity == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares if share)), rel=1e-6)
    said = capsys.readouterr().out
    assert f"{facts.error:.5f} a value" in said and f"perplexity {facts.perplexity:.1f}" in said
    assert f"{(shares > 0).mean():.1%} of 9 codes in use" in said


def test_the_same_words_write_the_same_bytes_and_another_seed_others(tiny_shards, tmp_path):
    one, again, other, batched = (
        fit(tiny_shards, tmp_path / f"{name}.safetensors", "of={name: hog, cell: 2}", f"seed={seed}", f"batch={batch}")
        for name, seed, batch in (("one", 0, 256), ("again", 0, 256), ("other", 1, 256), ("batched", 0, 7))
    )
    assert one.read_bytes() == again.read_bytes() != other.read_bytes()
    # What a processor works out several numbers at a time, such as an angle, may differ in its last bit with their place in memory.
    torch.testing.assert_close(read_codebook(batched).centres, read_codebook(one).centres, atol=1e-4, rtol=1e-3)


def test_held_out_images_are_not_fitted_to(make_shards, tmp_path):
    """Two sets that differ in what is held out alone."""
    found = []
    for held in (6, 9):
        shards = make_shards(tmp_path / str(held) / "train", [12, held])
        words = [f"data.holdout_samples={held}", "patches=64"]
        found.append(read_codebook(fit(shards, tmp_path / f"{held}.safetensors", *words)))
    assert torch.equal(found[0].centres, found[1].centres) and found[0].facts.holdout_error != found[1].facts.holdout_error


def test_a_yaml_of_pretraining_gives_seed_sizes_data_and_the_place(tmp_path):
    yaml = tmp_path / "run.yaml"
    text = "seed: 3\nmodel: {image_size: 32, patch_size: 8}\ntarget: {name: codebook, path: here.safetensors}\ndata: {flip: false}\noptim: {base_lr: 1}\n"
    yaml.write_text(text)
    config = config_of(parse(["--config", str(yaml), "clusters=5", "data.shards=s"]))
    assert (config.seed, config.model.patch_size, config.data.flip, config.data.shards) == (3, 8, False, "s")
    assert (config.out, config.clusters) == ("here.safetensors", 5)
    yaml.write_text("model: {patch_size: 8}\n")
    assert config_of(parse(["--config", str(yaml)])).out == "codebook.safetensors"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("clusters=1000", r"clusters=1000 exceeds the 512 patches that they are fitted to; lower it, or raise patches"),
        ("of={name: mean_color}", r"of mean_color: centres are of values that stay as they are; take pixels, hog"),
        ("of={name: features}", r"of features: centres are of values that stay as they are"),
        ("of={name: codebook, path: x}", r"of codebook: centres are of values that stay as they are"),
        ("of={name: rotation}", r"of rotation: .* take mask\.name=turn"),
        ("of={name: hog}", r"of hog: target\.cell=8 must divide model\.patch_size=4"),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused(words, message, tiny_shards, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fit(tiny_shards, tmp_path / "codebook.safetensors", words)
    assert not (tmp_path / "codebook.safetensors").exists()


def test_unreadable_images_stop_it_as_they_stop_training(make_shards, damage, tmp_path):
    shards = make_shards(tmp_path / "train", [12, 8])
    damage(shards, [3])
    with pytest.raises(DataError, match=r"1 unreadable of 12 samples, more than data\.max_bad_fraction=0 allows"):
        fit(shards, tmp_path / "codebook.safetensors")
    fit(shards, tmp_path / "codebook.safetensors", "data.max_bad_fraction=0.1")
