"""The plan of a run: its arithmetic by hand, what it says limits, and a real run that it has not seen."""

import re

import pytest

from mpp.base.errors import UserError
from mpp.data.batch_plan import plan_batch
from mpp.mains import plan
from mpp.mains.plan import GPUS, Counts, Machines, step_time
from mpp.plan import main
from mpp.train.zero_costs import Parameters, held_at_most
from tests.forks import run_forked
from tests.pipeline.conftest import ROOT, environment, free_port

H100 = GPUS["h100"]
MACHINES = Machines(gpus=16, per_node=8, gpu="h100", network=25.0, cores=96, loader_rate=1000.0)


def planned(capsys, *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


def column(text: str, stage: int) -> list[str]:
    return next(line for line in text.partition("step, of one GPU")[2].splitlines() if line.startswith(f"  ZeRO {stage}")).split()


def test_the_exchange_of_a_step_is_that_of_a_ring_over_all_ports_of_a_node():
    counts = Counts(Parameters(10**9), flop=10**12, step_bytes={1: 10**9, 2: 2 * 10**9})
    batch = plan_batch(512, None, 16, 32)
    found = step_time(counts, MACHINES, H100, batch, rate=100.0, stage=0, gradient_bytes=4)
    assert found.compute == pytest.approx(32 / 100)
    assert found.exchange == pytest.approx(2 * 15 / 16 * 4e9 / 200e9)  # eight ports of 25 GB/s
    assert found.overlapped == pytest.approx(found.compute)  # all of it fits behind the backward pass
    alone = step_time(counts, Machines(8, 8, "h100", 25.0, 96, 1000.0), H100, plan_batch(512, None, 8, 64), 100.0, 0, 4)
    assert alone.exchange == pytest.approx(2 * 7 / 8 * 4e9 / 300e9)
    first = step_time(counts, MACHINES, H100, batch, 100.0, 1, 4)
    assert first.exchange == pytest.approx(found.exchange * 1.5) and first.overlapped == pytest.approx(first.compute + found.exchange / 2)
    halved = step_time(counts, MACHINES, H100, batch, 100.0, 0, 2)
    assert halved.exchange == pytest.approx(found.exchange / 2)
    narrow = step_time(counts, Machines(16, 8, "h100", 0.1, 96, 1000.0), H100, batch, 100.0, 0, 4)
    assert narrow.overlapped == pytest.approx(narrow.compute + narrow.exchange - 2 / 3 * narrow.compute)


def test_the_largest_batch_fits_and_one_more_does_not():
    counts = Counts(Parameters(10**8), flop=1, step_bytes={32: 2 * 10**9, 64: 3 * 10**9})
    assert counts.bytes_at(96) == 4 * 10**9
    for stage in range(4):
        largest = counts.largest_batch(stage, 8, 20e9)
        held = [held_at_most(counts.parameters, stage, 8, int(counts.bytes_at(batch))) for batch in (largest, largest + 1)]
        assert held[0] <= 20e9 < held[1]
    assert counts.largest_batch(0, 8, 1e9) == 0


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        (["--loader-rate", "100000"], "limit: arithmetic"),
        (["--gpus", "64", "--network", "0.1"], "limit: the network: a step exchanges longer than it computes"),
        (["--cores", "9"], "limit: loading: 9 cores a node feed 1,000 images/s"),
        (
            ["system.micro_batch_max=131072", "data.global_batch=1048576", "optim.total_samples=1048576"],
            r"limit: memory: \d\d\d GB do not fit into 80",
        ),
    ],
)
def test_what_limits_is_said(words, limit, capsys):
    text = planned(capsys, "--config", "configs/cifar_mae.yaml", "data.global_batch=1024", *words)
    assert re.search(limit, text), text


def test_the_plan_is_that_of_the_card_it_was_measured_on(capsys):
    """docs/results.md: 2,342 images/s and 19.1 GB, 2,887 and 14.8, of 256 images at once on one H100."""
    for config, rate, gigabytes in (("mpp_b16", 2342, 19.08), ("mae_b16", 2887, 14.75)):
        text = planned(capsys, "--config", f"configs/{config}.yaml", "--gpus", "1", "data.global_batch=256", "system.micro_batch_max=256")
        held = float(re.search(r"ZeRO 0 +([\d.]+) ", text)[1])
        assert held == pytest.approx(gigabytes, rel=0.02)
        said = float(re.search(r"ZeRO 0 \(chosen\) +[\d.]+ +[\d.]+ +\d+ +([\d,]+)", text)[1].replace(",", ""))
        assert said == pytest.approx(rate, rel=0.02)


def test_less_is_held_where_more_is_computed_again_and_by_bf16_gradients_less_is_sent(capsys):
    small = ["--config", "configs/cifar_mae.yaml", "--gpus", "8", "data.global_batch=1024"]
    plain, full = planned(capsys, *small), planned(capsys, *small, "system.recompute=full")
    largest = lambda text: int(re.search(r"ZeRO 0 +[\d.]+ +([\d,]+)", text)[1].replace(",", ""))
    assert largest(full) > 1.3 * largest(plain)
    assert float(column(planned(capsys, *small, "system.gradient_precision=bf16"), 0)[4]) == pytest.approx(
        float(column(plain, 0)[4]) / 2, abs=1
    )


@pytest.mark.parametrize("recipe", ["cifar_data2vec", "cifar_capi_clusters", "cifar_ijepa"])
def test_a_teacher_is_held_beside_the_model(recipe, capsys, monkeypatch):
    seen = []
    real = plan.counts
    monkeypatch.setattr(plan, "counts", lambda model, *given: seen.append((model, real(model, *given))) or seen[-1][1])
    planned(capsys, "--config", f"configs/{recipe}.yaml", "--gpus", "1")
    ((model, found),) = seen
    size = lambda net: sum(parameter.numel() for parameter in net.parameters())
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    assert found.parameters.beside == size(model.encoder) + frozen


def test_a_rate_that_was_measured_counts(capsys):
    text = planned(capsys, "--config", "configs/mae_b16.yaml", "--gpus", "1", "--rate", "1234.5", "data.global_batch=64")
    assert "as given (1,234 images/s)" in text and re.search(r"ZeRO 0 \(chosen\) +51.8 +0.0 +0 +1,234 +1,234 +100.0%", text), text


@pytest.mark.parametrize(
    "words",
    [["--gpu", "b100"], ["--gpus", "7"], ["--rate", "0"], ["--gpus", "0"], ["--gpus", "3.5"], ["--cores", "many"], ["--network", "nan"]],
)
def test_what_cannot_be_planned_is_refused_by_name(words):
    with pytest.raises(UserError, match=words[1]):
        main(["--config", "configs/mae_b16.yaml", *words])


def test_this_machine_is_measured(tmp_path):
    words = ["--config", "configs/cifar_mae.yaml", "--gpus", "1", "--gpu", "here", "data.global_batch=16"]
    ran = run_forked(["mpp/plan.py", *words], cwd=ROOT, env=environment(0, 1, free_port()))
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"step, of one GPU as measured here \([\d,.]+ images/s\)", ran.stdout), ran.stdout
