"""Averages of gradients at ZeRO 0: in buckets, while the backward pass goes on, in one order on all processes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mpp.claims.subject import Subject, shaken
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.train.gradient_exchange import BUCKET_BYTES, GradientExchange, bytes_of, in_buckets

CONFIGS = Path(__file__).parents[2] / "configs"


class Network:
    """Stands for torch.distributed: two processes, of which the other's gradients are three times ours."""

    def __init__(self, monkeypatch):
        self.sent: list[torch.Tensor] = []
        self.waited: list[int] = []
        monkeypatch.setattr("torch.distributed.all_reduce", self.all_reduce)

    def all_reduce(self, flat, async_op):
        assert async_op
        number = len(self.sent)
        self.sent.append(flat.clone())

        def wait():
            self.waited.append(number)
            flat.mul_(4)

        return SimpleNamespace(wait=wait)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(6)))


def test_behind_the_backward_pass_gradients_are_the_average_over_processes_and_each_bucket_is_sent_once(monkeypatch):
    network, net, alone, images = Network(monkeypatch), small_net(), small_net(), torch.randn(5, 8)
    exchange = GradientExchange(list(net.parameters()), 2, torch.float32)
    for count in (1, 2):
        alone.zero_grad()
        net.zero_grad()
        alone(images).square().mean().backward()
        exchange.expect()
        net(images).square().mean().backward()
        exchange.finish()
        for ours, theirs in zip(net.parameters(), alone.parameters(), strict=True):
            assert torch.equal(ours.grad, 2 * theirs.grad) and ours.grad.is_contiguous()
        assert len(network.sent) == count * len(exchange.buckets)
    assert network.waited == [*range(len(exchange.buckets)), *range(len(exchange.buckets), 2 * len(exchange.buckets))]


def test_micro_batches_before_the_last_send_nothing_and_count(monkeypatch):
    network, net, alone, images = Network(monkeypatch), small_net(), small_net(), torch.randn(5, 8)
    exchange = GradientExchange(list(net.parameters()), 2, torch.float32)
    net(images).square().mean().backward()
    assert not network.sent
    exchange.expect()
    net(images).square().mean().backward()
    exchange.finish()
    (2 * alone(images).square().mean()).backward()
    for ours, theirs in zip(net.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, 2 * theirs.grad)


def test_what_a_step_did_not_use_is_zero_and_does_not_change_the_order_in_which_buckets_are_sent(monkeypatch):
    network, net = Network(monkeypatch), small_net()
    exchange = GradientExchange(list(net.parameters()), 2, torch.float32)
    exchange.expect()
    net[4](net[1](net[0](torch.randn(5, 8)))).square().mean().backward()
    assert not network.sent  # the last bucket is whole, but not the first, of the last layers
    exchange.finish()
    assert [len(flat) for flat in network.sent] == [sum(each.numel() for each in bucket) for bucket in exchange.buckets]
    assert not net[5].weight.grad.any() and not net[2].bias.grad.any() and net[4].weight.grad.any() and net[0].weight.grad.any()


def test_bf16_is_what_is_sent_and_float32_what_comes_of_it(monkeypatch):
    network, net = Network(monkeypatch), small_net()
    exchange = GradientExchange(list(net.parameters()), 2, torch.bfloat16)
    exchange.expect()
    net(torch.randn(5, 8)).square().mean().backward()
    exchange.finish()
    assert {flat.dtype for flat in network.sent} == {torch.bfloat16}
    assert {parameter.grad.dtype for parameter in net.parameters()} == {torch.float32}


def test_after_close_gradients_stay_as_they_are(monkeypatch):
    network, net = Network(monkeypatch), small_net()
    exchange = GradientExchange(list(net.parameters()), 2, torch.float32)
    exchange.expect()
    exchange.close()
    net(torch.randn(5, 8)).square().mean().backward()
    assert not network.sent and all(parameter.grad is not None for parameter in net.parameters())


def test_buckets_hold_all_parameters_in_their_order_and_none_is_small_but_the_last():
    parameters = [nn.Parameter(torch.empty(count, device="meta")) for count in (10**7, 3, 10**6, 8 * 10**6, 5, 10**7, 7)]
    buckets = in_buckets(parameters)
    assert [id(each) for bucket in buckets for each in bucket] == [id(each) for each in parameters]
    assert all(sum(map(bytes_of, bucket)) >= BUCKET_BYTES for bucket in buckets[:-1]) and len(buckets) == 4
    assert len(in_buckets([nn.Parameter(torch.empty(100)) for _ in range(8)])) == 4  # a small model, too, has something to send early


# CrossMAE never uses its encoder's last norm, so that all behind it waits for the end.
WAITING = {"cifar_crossmae": 1}


@pytest.mark.parametrize("recipe", ["cifar_mpp", "cifar_mae", "cifar_simmim", "cifar_capi_clusters", "cifar_pixio", "cifar_crossmae"])
def test_of_every_kind_of_recipe_all_but_the_first_layers_gradients_are_sent_during_the_backward_pass(recipe, monkeypatch):
    network = Network(monkeypatch)
    subject = Subject(recipe, load(PretrainConfig, CONFIGS / f"{recipe}.yaml", []), "")
    model = shaken(subject.small).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    on_the_way: list[int] = []
    model.encoder.vit.patch_embed.proj.bias.register_post_accumulate_grad_hook(
        lambda _: on_the_way.append(len(network.sent))
    )  # the last of all
    exchange = GradientExchange(trained, 2, torch.float32)
    exchange.expect()
    _, loss, *_, own = model(subject.images, *subject.few_masks())
    (loss.mean() + own).backward()
    assert on_the_way[0] >= WAITING.get(recipe, len(exchange.buckets) - 1)
    exchange.finish()
    assert sum(len(flat) for flat in network.sent) == sum(parameter.numel() for parameter in trained)
