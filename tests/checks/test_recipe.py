"""The recipe on these machines: each check once where it is well, and once where it is not."""

import pytest
import torch

from mpp.checks import recipe
from mpp.config.pretrain import PretrainConfig
from mpp.data.batch_plan import plan_batch
from mpp.interop.lent import bring
from mpp.mains.plan import Counts, counts
from mpp.mains.pretrain import blank_inputs
from mpp.recipe.masking import Masking
from mpp.recipe.model import build_model
from mpp.train.average import WeightAverage
from mpp.train.schedule import small_rate_note
from mpp.train.teacher import teacher_of
from mpp.train.zero_costs import Parameters, held_at_most

CPU = torch.device("cpu")


def of(batch: int = 4096, **optim) -> PretrainConfig:
    return PretrainConfig.model_validate({"data": {"global_batch": batch}, "optim": optim})


def rate_of(config: PretrainConfig, of_file: PretrainConfig | None):
    file = (of_file.optim, of_file.data.global_batch) if of_file else None
    optim, batch = config.optim, config.data.global_batch
    return recipe.rate(optim, batch, file, small_rate_note(optim, batch))


@pytest.mark.parametrize(
    ("config", "of_file", "verdict", "words"),
    [
        (of(base_lr=1.5e-4, lr_batch=256), of(base_lr=1.5e-4, lr_batch=256), "ok", "0.0024 = base_lr 0.00015 x batch 4096 / 256"),
        (of(64, base_lr=1.5e-4, lr_batch=256), None, "warning", "learns next to nothing"),
        (of(base_lr=2e-2), None, "warning", "very high"),
        (of(65536, base_lr=1.5e-4, lr_batch=256), None, "warning", "very high"),  # scaled by the batch
        (of(512), of(4096), "warning", "chosen at a batch of 4096, and it does not follow"),
        (of(16384), of(4096), "ok", "(the file: 0.0002 at batch 4096)"),
        (of(512, base_lr=1e-4), of(4096), "ok", "(the file: 0.0002 at batch 4096)"),
        (of(1024, base_lr=1.5e-4, lr_batch=256), of(4096, base_lr=1.5e-4, lr_batch=256), "ok", "(the file: 0.0024 at batch 4096)"),
    ],
)  # fmt: skip
def test_the_rate_after_scaling_is_told_beside_that_of_the_file(config, of_file, verdict, words):
    found = rate_of(config, of_file)
    assert found.verdict == verdict and words in found.found, found


def test_sgd_takes_rates_at_which_adamw_diverges():
    """The ends of the ViT paper's grid for fine-tuning."""
    optim = of(512, base_lr=0.06).optim
    assert (recipe.rate(optim, 512, None).verdict, recipe.rate(optim, 512, None, optimiser="sgd").verdict) == ("warning", "ok")
    assert recipe.rate(of(512, base_lr=3.0).optim, 512, None, optimiser="sgd").verdict == "warning"


def test_the_fix_of_a_rate_that_does_not_follow_the_batch_gives_that_of_the_file_in_proportion():
    found = rate_of(of(512), of(4096))
    lr_batch = int(found.fix.partition("lr_batch=")[2].split()[0])
    scaled = of(512, lr_batch=lr_batch)
    assert scaled.optim.peak_rate(512) == pytest.approx(of(4096).optim.peak_rate(4096) / 8)


def test_lost_nodes_that_leave_most_of_the_others_idle_are_a_warning():
    assert recipe.lost_nodes(plan_batch(4096, None, 32, 128), 4, 8).verdict == "ok"
    found = recipe.lost_nodes(plan_batch(56 * 64, 56, 56, 128), 7, 8)
    assert found.verdict == "warning" and "with 1 lost 1 of 6 go on" in found.found
    assert "data.streams=" in found.fix


def test_memory_is_held_against_what_there_is_and_the_fix_fits():
    found = Counts(Parameters(10**8), flop=1, step_bytes={32: 2 * 10**9, 64: 3 * 10**9})
    plan = plan_batch(1024, None, 8, 64)
    held = held_at_most(found.parameters, 0, 8, 3 * 10**9, plan.accumulation)
    assert recipe.memory(found, 0, plan, 8, held, "a card").verdict == "ok"
    short = recipe.memory(found, 0, plan, 8, held - 1, "a card")
    largest = int(short.fix.partition("micro_batch_max=")[2].split(",")[0])
    assert short.verdict == "FAILED" and 0 < largest < 64
    assert recipe.memory(found, 0, plan_batch(1024, None, 8, largest), 8, held - 1, "a card").verdict == "ok"
    assert recipe.memory(found, 0, plan, 8, held, "a card", peak=held + 1).verdict == "FAILED"  # it took more than arithmetic says
    assert "system.zero_stage=3" in recipe.memory(found, 0, plan, 8, 1e6, "a card").fix
    odd = held_at_most(found.parameters, 0, 8, int(found.bytes_at(33)), plan.accumulation)
    fix = lambda **more: recipe.memory(found, 0, plan, 8, odd, "a card", **more).fix
    assert "micro_batch_max=33," in fix() and "micro_batch_max=32," in fix(together=2)  # pairs that are mixed


@pytest.mark.parametrize("name", ["cifar_mae", "cifar_data2vec"])
def test_a_checkpoint_has_the_bytes_that_are_committed(name):
    from mpp.config.schema import load

    config = load(PretrainConfig, f"configs/{name}.yaml", [])
    model = build_model(config, None, bring(config, None).lent)
    average = teacher_of(model, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    bytes_of = lambda tensors: sum(4 * tensor.numel() for tensor in tensors)
    expected = 3 * bytes_of(trained) + bytes_of(frozen)
    assert (average is not None) == (name == "cifar_data2vec")
    if isinstance(average, WeightAverage):
        expected += bytes_of(average.tensors().values())
    assert recipe.commit_bytes(model, average.net if isinstance(average, WeightAverage) else None) == expected
    assert recipe.commit_bytes(model, None, moments=1) == 2 * bytes_of(trained) + bytes_of(frozen)


def test_a_step_is_timed_at_the_micro_batch_or_at_what_fits_into_the_time(monkeypatch):
    monkeypatch.setattr(recipe, "STEP_SECONDS", 0.05)
    small = {"arch": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 4, "width": 32, "depth": 1, "heads": 2}
    config = PretrainConfig.model_validate({"model": small, "data": {"global_batch": 8}, "system": {"precision": "fp32"}})
    plan, masking = plan_batch(8, None, 1, 8), Masking(config.model.grid, config.mask, config.corruption)
    model = build_model(config)
    found = counts(model, config, masking, 8)

    def blank(device: torch.device, batch: int):
        inputs = blank_inputs(config, masking, device, batch)
        return lambda: model(*inputs)[1].mean()

    rate = recipe.step_rate(model, blank, "fp32", plan, CPU, found.flop)
    assert 1 <= rate.batch <= 8 and rate.views > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert recipe.step_rate(model, blank, "fp32", plan, CPU, 10**15).batch == 1
    assert recipe.step(rate, found.flop).verdict == "ok"


def test_ranks_that_others_would_wait_for_are_named():
    hosts = [f"n{rank // 4}" for rank in range(8)]
    assert recipe.slow_ranks([100.0] * 7 + [81.0], hosts) is None
    found = recipe.slow_ranks([100.0] * 5 + [60.0, 100.0, 79.0], hosts)
    assert found is not None and found.verdict == "warning"
    assert found.found.startswith("2 of 8 ranks are slower than the middle one (100 views/s), the slowest rank 5 (host n1) with 60")


@pytest.mark.parametrize(
    ("views", "loaded", "verdict", "took"),
    [(1e6, None, "ok", "9 min"), (1e6, 1e4, "ok", "14.2 h"), (1e4, 1e6, "ok", "14.2 h"), (100.0, None, "ok", "59.3 days"), (80.0, None, "warning", "74.1 days")],
)  # fmt: skip
def test_a_run_is_as_long_as_its_samples_at_the_slower_of_loader_and_step(views, loaded, verdict, took):
    found = recipe.length(8 * 512_000_000, 4096, views, 8, loaded)
    assert found.verdict == verdict and f"about {took}," in found.found and found.found.startswith("1,000,000 steps")
    several = recipe.length(8 * 128_000_000, 4096, views, 8, loaded, repeats=4)
    assert several.verdict == verdict and f"about {took}," in several.found and several.found.startswith("4 times 250,000 steps")


def test_of_a_budget_it_is_told_what_it_gives():
    assert "budget=2h: up to 14,400,000 samples at 2,000 a second" in recipe.length(4_096_000_000, 4096, 1000.0, 2, None, "2h").found
