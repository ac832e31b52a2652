"""Probes with the encoder in the loop against torch's own modules, alone and on two processes."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mpp.base.errors import ConfigError, DataError
from mpp.transfer.features import Variant
from mpp.transfer.probes.attentive import AttentiveHeads, AttentiveProbe
from mpp.transfer.probes.contract import Answers, Measured
from mpp.transfer.probes.mae import MaeHeads, MaeProbe
from mpp.transfer.probes.online import Steps, cosine, train_online
from mpp.transfer.split import Split
from tests.forks import Forked

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
IMAGES, LABELS = 44, torch.arange(44) % 3


def images_of(epoch, rows):
    """Stands for augmented images: a function of (epoch, row)."""
    drawn = [np.random.default_rng([epoch, int(row)]).integers(0, 200, (3, 4, 4)) for row in rows]
    pixels = torch.from_numpy(np.stack(drawn)) + 9 * LABELS[rows].view(-1, 1, 1, 1)
    return pixels.to(torch.uint8)


def batches(epoch, parts):
    return [(images_of(epoch, rows), LABELS[rows]) for rows in parts]


def encode(images):
    """Two layers of a class token and 6 patch tokens, 8 and 12 wide."""
    flat = images.float().flatten(1) / 100 - 1
    generator = torch.Generator().manual_seed(3)
    return {
        layer: torch.tanh(flat @ (torch.randn(48, 7 * width, generator=generator) / 7)).unflatten(1, (7, width))
        for layer, width in ((1, 8), (4, 12))
    }


def encoded(encode, batches):
    """Batches of tokens, from batches of images."""
    return lambda epoch, parts: ((encode(images), labels) for images, labels in batches(epoch, parts))


def predict(probe, encode, batches):
    """Classes and their probabilities, each [H, m], for images in batches."""
    with torch.no_grad():
        found = [probe.predict(encode(images)) for images in batches]
    return tuple(torch.cat(part, dim=1) for part in zip(*found, strict=True))


def mae_probe(rates=(0.1, 1000.0), variants=((1, "mean"), (4, "both")), per_step=22.0):
    return MaeHeads(variants, {1: 8, 4: 12}, 1, 3, learning_rates=rates, images_per_step=per_step, seed=5, device=CPU)


def attentive_probe(rates=(0.01, 0.1), widths=None, per_step=22.0, weight_decay=2.0):
    widths = widths or {1: 8, 4: 12}
    return AttentiveHeads(widths, 1, 3, learning_rates=rates, weight_decay=weight_decay, images_per_step=per_step, seed=5, device=CPU)


def trained(probe, micro=100, **changes):
    train_online(probe, encoded(encode, batches), Steps(np.arange(IMAGES), 22, micro, 7, **changes), epochs=3, warmup_epochs=1)
    return probe


def answers(probe):
    return predict(probe, encode, [images_of(99, np.arange(20)), images_of(99, np.arange(20, 44))])


# ------------------------------------------------------------------------------------------------------------------ steps and rates


def test_every_row_is_in_one_step_of_an_epoch_on_any_number_of_processes():
    rows = np.arange(100, 203)
    whole = Steps(rows, 25, 7, 3)
    plan = whole.epoch(2)
    assert len(plan) == whole.per_epoch == 5 and whole.images_per_step == 103 / 5
    assert {sum(map(len, step)) for step in plan} == {20, 21} and max(len(part) for step in plan for part in step) <= 7
    assert np.array_equal(np.sort(np.concatenate([part for step in plan for part in step])), rows)
    shares = [Steps(rows, 25, 4, 3, rank, 3).epoch(2) for rank in range(3)]
    for number, step in enumerate(plan):
        shared = np.concatenate([part for share in shares for part in share[number]])
        assert np.array_equal(np.sort(shared), np.sort(np.concatenate(step)))
    assert not np.array_equal(np.concatenate(plan[0]), np.concatenate(whole.epoch(3)[0]))
    assert np.array_equal(np.concatenate(plan[0]), np.concatenate(Steps(rows, 25, 7, 3).epoch(2)[0]))


def test_more_processes_than_images_in_a_step_are_refused():
    with pytest.raises(ConfigError, match="a step of 2 images cannot be shared by 4"):
        Steps(np.arange(10), 2, 2, 0, 0, 4)


def test_the_rate_is_that_of_maes_schedule():
    assert [cosine(e, 90, 10) for e in (0, 5, 10, 50, 90)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert cosine(30, 90, 10) == pytest.approx((1 + math.cos(math.pi * 20 / 80)) / 2)
    assert cosine(0, 10, 0) == 1


def test_images_that_do_not_come_stop_the_training():
    def lossy(epoch, parts):
        return batches(epoch, parts)[:-1] if epoch else batches(epoch, parts)

    with pytest.raises(DataError, match="epoch 1, step 1: 0 images came and 22"):
        train_online(mae_probe(), encoded(encode, lossy), Steps(np.arange(IMAGES), 22, 22, 7), epochs=3, warmup_epochs=1)


# ------------------------------------------------------------------------------------------------------------------ against torch


def feed():
    """Images, labels and schedule factor of every step of `trained`."""
    for epoch in range(3):
        for number, step in enumerate(Steps(np.arange(IMAGES), 22, 100, 7).epoch(epoch)):
            yield images_of(epoch, step[0]), LABELS[step[0]], cosine(epoch + number / 2, 3, 1)


def test_maes_probe_is_batch_norm_and_a_linear_layer_under_lars():
    found = trained(mae_probe())
    for i, (layer, pool) in enumerate([(1, lambda t: t[:, 1:].mean(1)), (4, lambda t: torch.cat([t[:, 0], t[:, 1:].mean(1)], 1))]):
        for r, rate in enumerate((0.1, 1000.0)):
            start = mae_probe()
            norm = nn.BatchNorm1d(start.weight[i].shape[2], eps=1e-6, affine=False)
            head = nn.Linear(norm.num_features, 3)
            head.weight.data, head.bias.data = start.weight[i][r].clone(), torch.zeros(3)
            velocity = {p: torch.zeros_like(p) for p in head.parameters()}
            for images, labels, factor in feed():
                head.zero_grad()
                nn.functional.cross_entropy(head(norm(pool(encode(images)[layer]))), labels).backward()
                with torch.no_grad():
                    for p in head.parameters():
                        trust = 0.001 * p.norm() / p.grad.norm() if p.ndim > 1 else 1.0
                        velocity[p].mul_(0.9).add_(p.grad * trust)
                        p.sub_(rate * 22 / 256 * factor * velocity[p])
            assert_close(found.weight[i][r], head.weight.detach(), rtol=1e-4, atol=1e-6)
            assert_close(found.bias[i][r], head.bias.detach(), rtol=1e-4, atol=1e-6)
            norm.eval()
            probability = head(norm(pool(encode(images_of(99, np.arange(44)))[layer]))).softmax(1)
            classes, confidence = answers(found)
            assert torch.equal(classes[2 * i + r], probability.argmax(1))
            assert_close(confidence[2 * i + r], probability.max(1).values.detach(), rtol=1e-4, atol=1e-5)


def cross_attention(tokens, query, key, value, head, shift, bias):
    x = nn.functional.layer_norm(tokens[:, 1:], (tokens.shape[2],), eps=1e-6)
    attention, columns = query.shape
    keys, values = ((x @ matrix.flatten(0, 1).T).unflatten(2, (attention, columns)).transpose(1, 2) for matrix in (key, value))
    asked = query.view(1, attention, 1, columns).expand(len(x), -1, -1, -1)
    pooled = nn.functional.scaled_dot_product_attention(asked, keys, values).transpose(1, 2).flatten(1) + shift
    return pooled @ head.T + bias


def test_the_attentive_probe_is_cross_attention_with_keys_and_values_of_every_token():
    found = trained(attentive_probe())
    for layer, width in ((1, 8), (4, 12)):
        for r, rate in enumerate((0.01, 0.1)):
            start = attentive_probe().parts[layer][r]
            matrices = [p.detach().clone().requires_grad_() for p in start.decayed]  # query, key, value, head
            biases = [torch.zeros(width, requires_grad=True), torch.zeros(3, requires_grad=True)]
            groups = [{"params": matrices, "weight_decay": 2.0}, {"params": biases, "weight_decay": 0.0}]
            optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95))

            for images, labels, factor in feed():
                for group in optimiser.param_groups:
                    group["lr"] = rate * 22 / 256 * factor
                optimiser.zero_grad()
                nn.functional.cross_entropy(cross_attention(encode(images)[layer], *matrices, *biases), labels).backward()
                optimiser.step()
            tokens = encode(images_of(99, np.arange(44)))[layer]
            assert_close(found.logits(layer, tokens)[r], cross_attention(tokens, *matrices, *biases), rtol=1e-3, atol=1e-5)


def test_heads_of_64_columns_and_their_parameters_are_counted():
    probe = attentive_probe(widths={2: 192})
    assert probe.parts[2][0].query.shape == (3, 64)
    assert sum(parameter.numel() for parameter in probe.trained) == 2 * (192 + 2 * 192**2 + 192 + 3 * 192 + 3)  # at two rates


# ------------------------------------------------------------------------------------------------------------------ what must not matter


@pytest.mark.parametrize("make", [mae_probe, attentive_probe])
def test_the_size_of_a_forward_pass_does_not_matter(make):
    whole, pieces = answers(trained(make())), answers(trained(make(), micro=5))
    assert torch.equal(whole[0], pieces[0])
    assert_close(whole[1], pieces[1], rtol=0, atol=2e-4)


def test_a_head_beside_others_is_the_head_alone():
    beside = answers(trained(mae_probe()))[1][3]
    assert_close(beside, answers(trained(mae_probe(rates=(1000.0,), variants=((4, "both"),))))[1][0], rtol=0, atol=2e-4)
    beside = answers(trained(attentive_probe()))[1][2]
    assert_close(beside, answers(trained(attentive_probe(rates=(0.01,), widths={4: 12})))[1][0], rtol=0, atol=2e-4)


def test_an_attentive_probe_finds_the_one_patch_that_tells():
    def telling(images):
        tokens = torch.randn(len(images), 10, 8, generator=torch.Generator().manual_seed(int(images.long().sum())))
        tokens[:, 0] = 0
        tokens[:, 4, :3] = 3 * nn.functional.one_hot(LABELS[images[:, 0, 0, 0].long()], 3) - 1.0
        tokens[:, 4, 3:] = torch.tensor([4.0, -4, 4, -4, 4])
        return {1: tokens}

    def numbered(epoch, parts):
        return [(torch.from_numpy(rows).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).to(torch.uint8), LABELS[rows]) for rows in parts]

    probe = attentive_probe(rates=(0.2,), widths={1: 8}, weight_decay=0.1)
    train_online(probe, encoded(telling, numbered), Steps(np.arange(IMAGES), 22, 22, 7), epochs=60, warmup_epochs=5)
    classes, confidence = predict(probe, telling, [numbered(0, [np.arange(IMAGES)])[0][0]])
    assert torch.equal(classes[0], LABELS) and confidence.min() > 0.6


@pytest.mark.parametrize("probe", [MaeProbe, AttentiveProbe])
def test_answers_are_to_the_crops_of_the_source_on_the_hold_out_and_at_the_end(probe):
    """Resize(256) and CenterCrop(224), in MAE's main_linprobe.py as in CAPI's eval_classification.py."""
    crops = []

    class Views:
        prefix, class_tokens, rank, processes = 1, 1, 0, 1
        width_of = staticmethod(lambda layer: 8)

        def augmented(self, epoch, parts, layers, crop_scale):
            return [({0: torch.ones(len(rows), 3, 8)}, rows) for rows in parts]

        def answers(self, predict, layers, rows, crop=None):
            crops.append(crop)
            classes, sure = predict({0: torch.ones(len(rows), 3, 8)})
            return [Answers(*pair) for pair in zip(classes, sure, strict=True)]

    def seen(**knobs):
        crops.clear()
        train = SimpleNamespace(
            views=Views(), own=Variant((0,), "mean"), labels=np.arange(9) % 2, classes="ab", seed=0, device=torch.device("cpu"),
            variants=[Variant((0,), "mean")], last=0, split=Split(np.arange(6), np.arange(6, 9)), truth=lambda rows: torch.zeros(len(rows), dtype=torch.int64), on_holdout=lambda _: torch.zeros(()),
        )  # fmt: skip
        fitted = probe(epochs=1, warmup_epochs=0, learning_rates=(0.1, 0.2), **knobs).fit(train)
        fitted.answer(Measured(None, np.arange(4), Views()))
        return crops, fitted.about["crop"]

    assert seen() == ([0.875, 0.875], 0.875)
    assert seen(crop=0.6) == ([0.6, 0.6], 0.6)
    assert seen(crop=None) == ([None, None], None)


def test_the_global_generator_is_left_alone():
    state = torch.random.get_rng_state()
    trained(mae_probe()), trained(attentive_probe())
    assert torch.equal(torch.random.get_rng_state(), state)


PROGRAM = """
import sys
import torch
from torch import distributed
from tests.transfer.test_online import answers, attentive_probe, mae_probe, trained
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
found = [answers(trained(make(), micro=6, rank=rank, world=2)) for make in (mae_probe, attentive_probe)]
torch.save(found, out)
distributed.destroy_process_group()
"""


def test_two_processes_train_the_heads_that_one_trains(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = [Forked(["-c", PROGRAM, str(r), str(tmp_path / "store"), str(tmp_path / f"{r}.pt")], ROOT, environment) for r in range(2)]
    for process in running:
        out, err = process.communicate(120)
        assert process.returncode == 0, out + err
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for make, one, two in zip((mae_probe, attentive_probe), first, second, strict=True):
        alone = answers(trained(make()))
        assert torch.equal(one[1], two[1])  # the same bits in both
        assert torch.equal(one[0], alone[0])
        assert_close(one[1], alone[1], rtol=0, atol=2e-4)
