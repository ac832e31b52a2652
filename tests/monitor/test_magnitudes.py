"""Where in a model numbers cease to be finite, on the way there and back."""

import math

import torch
from torch import nn

from mpp.monitor.magnitudes import watching


class Blowing(nn.Module):
    """Three layers, the middle of which may give more than float32 holds."""

    def __init__(self, factor: float = 1.0, behind: float = 1.0):
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))
        self.factor, self.behind = factor, behind
        with torch.no_grad():
            self.two.weight *= factor

    def forward(self, x):
        return (self.three(self.two(self.one(x)) * self.behind)).square().mean()


def test_the_first_module_whose_output_is_not_finite_is_named_and_what_led_there():
    torch.manual_seed(0)
    net = Blowing(1e38)
    with torch.no_grad():
        net.one.weight *= 1e4
    x = torch.ones(2, 4)
    with watching([("", net)]) as seen:
        net(x)
    assert seen.first is not None and (seen.first.name, seen.first.kind, seen.first.given_finite) == ("two", "Linear", True)
    assert [(each.name, each.finite) for each in seen.forward] == [("one", True), ("two", False), ("three", False), ("", False)]
    assert seen.forward[0].largest == float(net.one(x).detach().abs().max())
    assert [each.name for each in seen.before(seen.first, 8)] == ["one", "two"]


def test_what_is_computed_between_modules_is_told_apart():
    net = Blowing(behind=math.inf)
    with watching([("net.", net)]) as seen:
        net(torch.ones(2, 4))
    assert seen.first is not None and (seen.first.name, seen.first.given_finite) == ("net.three", False)


def test_gradients_are_followed_from_the_loss_on():
    torch.manual_seed(0)
    net = Blowing()
    with watching([("", net)]) as seen:
        out = net(torch.ones(2, 4))
        (out * 1e38 * 1e38).backward()
    assert seen.first is None and seen.first_back is not None and seen.first_back.name == ""  # it comes in broken
    net = Blowing(behind=1e20)
    with torch.no_grad():
        net.three.weight *= 1e-20
    with watching([("", net)]) as seen:
        out = net(torch.ones(2, 4))
        (out * 1e30).backward()
    assert seen.first is None and seen.first_back is not None
    assert (seen.first_back.name, seen.first_back.kind) == ("three.weight", "weight")  # 1e20 that went in times 1e20 that came back
    order = [each.name for each in seen.backward]
    assert order.index("") < order.index("three") < order.index("two") < order.index("one")
    assert {each.name for each in seen.backward if each.kind == "weight"} == {name for name, _ in net.named_parameters()}


def test_nothing_is_left_behind_on_the_model():
    net = Blowing()
    with watching([("", net)]):
        pass
    hooks = [module._forward_hooks or module._forward_pre_hooks for module in net.modules()]
    assert not any(hooks)
