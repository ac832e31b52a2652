"""What only changes speed or memory changes losses and gradients by rounding alone: here attention and micro-batches; compiling, recomputing, precision
and ZeRO in test_compiled.py, test_recompute.py and test_precision.py."""

from pathlib import Path

import pytest
import torch

from mpp.claims.subject import Subject, shaken
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.config.sections import SystemConfig
from mpp.model.tokens import choose_attention, fused_attention_pays, fuses_attention

CONFIGS = Path(__file__).parents[2] / "configs"


def loss_and_gradients(subject: Subject, precision: str, fused: bool) -> tuple[float, torch.Tensor]:
    model = shaken(subject.small)
    choose_attention(model, fused)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        _, loss, *_, own = model(subject.images, *subject.few_masks())
    total = loss.mean() + own
    total.backward()
    return float(total.detach()), torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


@pytest.mark.parametrize("recipe", ["cifar_mpp", "cifar_mae", "cifar_crossmae", "cifar_capi"])  # rotary ones too
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_fused_attention_is_plain_attention_up_to_rounding(recipe, precision, tolerance):
    subject = Subject(recipe, load(PretrainConfig, CONFIGS / f"{recipe}.yaml", []), "")
    plain, gradients = loss_and_gradients(subject, precision, fused=False)
    fused, others = loss_and_gradients(subject, precision, fused=True)
    assert fused == pytest.approx(plain, rel=tolerance)
    assert float((others - gradients).norm() / gradients.norm()) < 5 * tolerance
    assert not torch.equal(others, gradients)  # it is another kernel


def test_attention_is_the_faster_one_by_precision_and_device_unless_somebody_asks():
    assert [fused_attention_pays(*of) for of in (("fp32", "cpu"), ("bf16", "cpu"), ("fp32", "cuda"), ("bf16", "cuda"))] == [
        True,
        False,
        True,
        True,
    ]
    assert (
        fuses_attention(SystemConfig(precision="fp32"), "cpu")
        and not fuses_attention(SystemConfig(), "cpu")
        and fuses_attention(SystemConfig(), "cuda")
    )
    assert not fuses_attention(SystemConfig(fused_attention=False), "cuda") and fuses_attention(SystemConfig(fused_attention=True), "cpu")


def test_micro_batches_give_the_gradients_of_the_whole_batch():
    subject = Subject("cifar_mae", load(PretrainConfig, CONFIGS / "cifar_mae.yaml", []), "")
    model = shaken(subject.small)
    gradients = []
    for parts in (1, 2):
        model.zero_grad()
        for part in range(parts):
            few = slice(part * 2 // parts, (part + 1) * 2 // parts)
            _, loss, *_ = model(subject.images[few], *(each[few] for each in subject.few_masks()))
            (loss.mean() / parts).backward()
        gradients.append(torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
