"""Computing the blocks a second time changes neither losses nor gradients by a bit, drop-path noise included, and holds fewer bytes."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from mpp.claims.subject import Subject, shaken
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.model.recompute import recompute_blocks
from mpp.monitor.memory import step_bytes

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = ["cifar_mpp", "cifar_mae", "cifar_crossmae", "cifar_capi_clusters", "cifar_ijepa", "cifar_data2vec"]


def subject(recipe):
    return Subject(recipe, load(PretrainConfig, CONFIGS / f"{recipe}.yaml", ["model.drop_path=0.3"]), "")


def loss_and_gradients(recipe, kind, compiled=False):
    given = subject(recipe)
    model = shaken(given.small).train()
    recompute_blocks(model, kind)
    if compiled:
        torch.compiler.reset()
        model.compile(backend="aot_eager", dynamic=False)
    torch.manual_seed(3)
    _, loss, *_, own = model(given.images, *given.few_masks())
    (loss.mean() + own).backward()
    return loss.detach(), {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["selective", "full"])
def test_losses_and_gradients_stay_the_same_to_the_bit(recipe, kind):
    (loss, gradients), (again, others) = loss_and_gradients(recipe, "none"), loss_and_gradients(recipe, kind)
    assert torch.equal(loss, again) and gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, others[name]), name


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_compiled_it_is_still_one_graph(kind):
    counters.clear()
    loss, _ = loss_and_gradients("cifar_mae", kind, compiled=True)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(loss, loss_and_gradients("cifar_mae", "none")[0])
    torch.compiler.reset()


def test_fewer_bytes_are_held_the_more_is_computed_again():
    held = []
    for kind in ("none", "selective", "full"):
        given = subject("cifar_mpp")
        model = shaken(given.small).train()
        recompute_blocks(model, kind)
        images, masks = given.images.repeat(16, 1, 1, 1), [part.repeat(16, 1) for part in given.few_masks()]
        held.append(step_bytes(model, lambda m=model, i=images, k=masks: m(i, *k)[1].mean()))
    none, selective, full = held
    assert full < 0.8 * none and full < 0.95 * selective and selective < 0.95 * none, held
