"""Ranks, spread and cosine: against numpy's SVD and scikit-learn's pairs, on spectra that are known, and on what collapses."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import normalize

from mpp.monitor import rank
from mpp.monitor.rank import spread, words

SHAPES = [(40, 9), (9, 40), (30, 30), (2, 5)]


def random(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rankme(matrix: np.ndarray) -> float:
    share = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    share = share[share > 1e-9 * share.max()] / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def test_ranks_of_known_spectra():
    assert spread(torch.eye(50, 7))["rank_uncentred"] == pytest.approx(7)
    half, quarter = 0.5, 0.25  # singular values 2, 1, 1 as shares
    known = math.exp(-half * math.log(half) - 2 * quarter * math.log(quarter))
    assert spread(torch.diag(torch.tensor([2.0, 1.0, 1.0])))["rank_uncentred"] == pytest.approx(known)
    about_zero = torch.cat([torch.diag(torch.tensor([2.0, 1.0, 1.0])), -torch.diag(torch.tensor([2.0, 1.0, 1.0]))])
    assert spread(about_zero + 3)["rank"] == pytest.approx(known)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_every_figure_is_that_of_numpy_and_scikit_learn(shape, offset):
    features = random(shape) + offset
    plain = features.double().numpy()
    found = spread(features)
    assert found["rank_uncentred"] == pytest.approx(rankme(plain), rel=1e-6)
    assert found["rank"] == pytest.approx(rankme(plain - plain.mean(0)), rel=1e-6)
    pairs = cosine_similarity(plain)[~np.eye(len(plain), dtype=bool)]
    assert found["mean_cosine"] == pytest.approx(pairs.mean(), abs=1e-9)
    assert found["deviation"] == pytest.approx(normalize(plain).std(0).mean() * math.sqrt(shape[1]), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_figure_knows_a_scale_and_all_but_the_deviation_know_no_rotation(shape):
    features = random(shape).double() + 1
    turn = torch.linalg.qr(random((shape[1], shape[1]), 1).double()).Q
    for scale in (1e-30, 100.0, 1e200):
        assert spread(scale * features) == pytest.approx(spread(features), rel=1e-6)
    turned = spread(features @ turn)
    assert {key: turned[key] for key in turned if key != "deviation"} == pytest.approx(
        {key: value for key, value in spread(features).items() if key != "deviation"}, rel=1e-6
    )


@pytest.mark.parametrize("shape", [(20, 6), (6, 20), (1, 4), (1000, 6)])
@pytest.mark.parametrize("value", [0.1, -7.3e8])
def test_constant_features_have_no_rank_but_the_one_direction_all_images_share(shape, value):
    columns = value * (1 + torch.arange(shape[1]) / 7)
    for features in (
        columns.expand(shape),
        value * (1 + torch.arange(shape[1]).double() / 7).expand(shape),
        columns.expand(shape).bfloat16(),
    ):
        found = spread(features)
        assert found == pytest.approx({"rank": 0.0, "rank_uncentred": 1.0, "mean_cosine": 1.0, "deviation": 0.0}, abs=1e-6)
        assert found["rank"] == 0 and "collapsed" in words(found)


def test_a_constant_encoders_rounding_has_no_rank_either():
    features = (torch.full((300, 40), 0.1).double() * (1 + 5e-8 * random((300, 40)).double())).float()
    assert features.unique().numel() > 1
    assert spread(features)["rank"] == 0


def test_features_that_are_all_zero_and_images_without_any_give_numbers():
    assert spread(torch.zeros(5, 3)) == {"rank": 0.0, "rank_uncentred": 0.0, "mean_cosine": 0.0, "deviation": 0.0}
    some = random((10, 4))
    some[3] = 0
    assert spread(some)["mean_cosine"] == pytest.approx(cosine_similarity(some.double())[~np.eye(10, dtype=bool)].mean(), abs=1e-9)


def test_a_huge_common_offset_in_float32_takes_nothing_from_the_centred_rank():
    features = random((400, 12)) + 1e5  # float32 keeps two decimals there
    found = spread(features)
    plain = features.double().numpy()
    assert found["rank"] == pytest.approx(rankme(plain - plain.mean(0)), rel=1e-6) and found["rank"] > 11.9
    assert found["rank_uncentred"] == pytest.approx(1, abs=0.01) and 0.999999 < found["mean_cosine"] <= 1


def test_a_constant_column_beside_small_ones_adds_no_direction():
    features = torch.cat([1e-3 * random((200, 5)), torch.full((200, 1), 0.1)], dim=1)
    assert spread(features)["rank"] == pytest.approx(spread(features[:, :5])["rank"], rel=1e-5)


def test_a_common_direction_rules_the_uncentred_rank_and_the_words_say_which_to_trust():
    images = random((500, 64))
    healthy = images + 12 * random((64,), 1)
    said = words(spread(healthy))
    assert spread(healthy)["rank"] == pytest.approx(spread(images)["rank"], rel=1e-4) and spread(healthy)["rank_uncentred"] < 20
    assert (
        "judge by the centred one" in said and f"{spread(healthy)['rank']:.1f}" in said and f"{spread(healthy)['mean_cosine']:.3f}" in said
    )
    assert words(spread(images)) == ""


def test_few_directions_about_the_mean_are_seen_whatever_the_mean_is():
    few = random((500, 2)) @ random((2, 64), 1)
    for mean in (0, 5):
        found = spread(few + mean * random((64,), 2))
        assert found["rank"] == pytest.approx(spread(few)["rank"], rel=1e-4) and found["rank"] <= 2 and "centred" not in words(found)


def test_notes_explain_the_columns_once_and_name_the_rows_that_need_words():
    healthy, shared = spread(random((200, 16))), spread(random((200, 16)) + 20)
    lines = rank.notes({"a": {"feature_rank": healthy}, "b": {"feature_rank": shared}, "old": {"feature_rank": 7.5}, "none": {}})
    assert rank.EXPLAINED in lines[0] and [line.split()[1].rstrip(":,") for line in lines[1:]] == ["b", "old"]
    assert rank.notes({"none": {}}) == []
