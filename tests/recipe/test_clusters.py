"""Clusters of a teacher's features: Sinkhorn's shares and both losses against plain NumPy, and who learns from what."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpp.recipe.model import build_model
from mpp.recipe.places import Masks
from mpp.recipe.targets.base import Across, everywhere
from mpp.recipe.targets.clusters import UnitLinear, sinkhorn
from mpp.recipe.teacher import Teacher
from mpp.train.average import WeightAverage
from tests.recipe.test_model import masks, pictures, recipe

CLUSTERS = {
    "target": {"name": "clusters", "clusters": 24, "ema_start": 0.9, "ema_end": 0.9},
    "corruption": {"name": "replace", "mask": 1.0, "swap": 0.0, "keep": 0.0},
}


def by_hand(scores: np.ndarray, iterations: int) -> np.ndarray:
    """SwAV's rounds on exp(scores) [B, N, C], place by place: columns of equal sum over the batch, then rows of sum 1."""
    found = np.empty_like(scores)
    for place in range(scores.shape[1]):
        shares = np.exp(scores[:, place] - scores[:, place].max())
        shares /= shares.sum()
        for _ in range(iterations):
            shares /= shares.sum(0, keepdims=True) * shares.shape[1]
            shares /= shares.sum(1, keepdims=True) * shares.shape[0]
        found[:, place] = shares * shares.shape[0]
    return found


def normed(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def taught(config, seed: int = 1):
    model = build_model(config, fused_attention=False)
    other = build_model(config.model_copy(update={"seed": seed}), fused_attention=False)
    model.lend(Teacher(WeightAverage(other.encoder, lambda step: 0.0).net, config.data.mean, config.data.std))
    return model


@given(st.integers(1, 9), st.integers(1, 4), st.integers(2, 7), st.integers(1, 5), st.integers(0, 99))
def test_shares_are_those_of_sinkhorns_rounds_by_hand(batch, places, clusters, iterations, seed):
    scores = torch.randn(batch, places, clusters, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4
    found = sinkhorn(scores, iterations, Across())
    np.testing.assert_allclose(found.numpy(), by_hand(scores.numpy(), iterations), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.sum(-1), torch.ones(batch, places, dtype=torch.float64))


def test_after_many_rounds_every_cluster_is_used_equally_often_at_each_place():
    scores = torch.randn(32, 3, 8, generator=torch.Generator().manual_seed(0)) + 5 * torch.randn(1, 3, 8)
    torch.testing.assert_close(sinkhorn(scores, 500, Across()).sum(0), torch.full((3, 8), 4.0), rtol=1e-3, atol=1e-3)


def test_scores_beyond_what_an_exponential_holds_give_finite_shares():
    shares = sinkhorn(torch.tensor([[[900.0, -900.0]], [[800.0, 700.0]]]), 3, Across())
    assert shares.isfinite().all() and torch.equal(shares.argmax(-1).flatten(), torch.tensor([0, 1]))


@torch.no_grad()
@pytest.mark.parametrize("by_place", [True, False])
def test_goals_and_both_losses_are_those_of_the_papers_formulas(by_place):
    config = recipe(
        **CLUSTERS, model={"arch": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 48, "depth": 2, "heads": 3}
    )
    config = config.model_copy(update={"target": config.target.model_copy(update={"by_place": by_place})})
    model, mask, images = taught(config).eval(), Masks(**masks(config, batch=5)), pictures(5).float()
    prediction, loss, _, own = model(images, *mask)
    net = model.teacher.net
    tokens = net.vit.forward_features((images / 255 - 0.5) / 0.5)[:, net.prefix :].double().numpy()  # timm's own way, under its norm
    head = model.target.clusters
    logits = normed(tokens) @ head.weight.double().numpy().T + head.bias.double().numpy()
    scores = logits / 0.06
    shares = by_hand(scores, 3) if by_place else by_hand(scores.reshape(-1, 1, 24), 3).reshape(scores.shape)
    log_softmax = lambda values: values - np.log(np.exp(values).sum(-1, keepdims=True))
    assert float(own) == pytest.approx(-(shares * log_softmax(logits / 0.12)).sum(-1).mean(), rel=1e-5)
    goal = np.take_along_axis(shares, mask.predicted[..., None].numpy(), 1)
    np.testing.assert_allclose(model.target(images, mask, model.teacher).numpy(), goal, atol=2e-5)
    expected = -(goal * log_softmax(prediction.double().numpy() / 0.12)).sum(-1)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-4)


def test_the_head_learns_from_its_own_loss_alone_and_the_student_from_the_predictions_alone():
    config = recipe(**CLUSTERS)
    model, mask, images = taught(config), masks(config), pictures().float()
    _, loss, _, own = model(images, **mask)
    loss.mean().backward(retain_graph=True)
    assert model.target.clusters.weight.grad is None and model.encoder.vit.blocks[0].attn.qkv.weight.grad.any()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    own.backward()
    assert model.target.clusters.weight.grad.any() and model.target.clusters.bias.grad.any()
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in model.named_parameters() if name in before)
    assert all(parameter.grad is None for parameter in model.teacher.net.parameters())


@torch.no_grad()
def test_processes_together_give_the_shares_of_one_with_all_their_images():
    scores = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(3)) * 3
    whole = sinkhorn(scores, 3, Across())
    parts = [scores[:3], scores[3:]]
    for _ in range(3):  # what the two would be told, round by round, if each asked at once
        most = torch.maximum(parts[0].amax(0, keepdim=True), parts[1].amax(0, keepdim=True))
        total = sum((part - most).exp().sum(0, keepdim=True) for part in parts)
        across = Across(total=lambda _, total=total: total, most=lambda _, most=most: most)
        parts = [sinkhorn(part, 1, across).log() for part in parts]
    torch.testing.assert_close(torch.cat(parts).exp(), whole)


@torch.no_grad()
def test_the_students_head_is_torchs_weight_norm_on_vectors_of_unit_length():
    head = UnitLinear(6, 4)
    head.length += torch.rand(4)
    plain = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(6, 4, bias=False))
    plain.parametrizations.weight.original0.copy_(head.length[:, None])
    plain.parametrizations.weight.original1.copy_(head.direction)
    tokens = torch.randn(3, 6)
    torch.testing.assert_close(head(tokens), plain(tokens / tokens.norm(dim=-1, keepdim=True)))


def test_the_same_seed_draws_the_same_clusters():
    config = recipe(**CLUSTERS)
    torch.manual_seed(0)
    first = build_model(config).target.clusters.weight
    torch.manual_seed(1)
    assert torch.equal(first, build_model(config).target.clusters.weight)
    assert not torch.equal(first, build_model(config.model_copy(update={"seed": 1})).target.clusters.weight)


@torch.no_grad()
def test_a_picture_gives_each_cluster_a_colour_of_its_own():
    config = recipe(**CLUSTERS)
    target, images = taught(config).target, torch.zeros(1, 24, 3, 8, 8)
    shown = target.picture(torch.eye(24)[None], images, images)
    colours = {tuple(colour.round().tolist()) for colour in shown[0, :, :, 0, 0]}
    assert shown.shape == images.shape and len(colours) == 24 and shown.min() >= 0 and shown.max() <= 255
    assert everywhere(Masks(**masks(config))).predicted.shape == (2, 16)
