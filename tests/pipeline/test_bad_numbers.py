"""Numbers that are not finite, losses that jump, and samples that are passed over: what a run does about them, and that it resumes as ever."""

import json
import math
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mpp.base.errors import AGAIN
from tests.pipeline.conftest import Finished, metrics, pretrain, succeed, tensors
from tests.pipeline.test_resume import forget_after
from tests.pipeline.test_teacher import FEATURES

# mpp/pretrain.py with the loss of these steps, on one rank, times a factor.
POISON = """
import os, sys
import mpp.train.run as run
from mpp.base.errors import run_program
from mpp.pretrain import main
from mpp.train.engine import Engine
steps, rank, factor = [int(n) for n in sys.argv.pop(1).split(",")], sys.argv.pop(1), float(sys.argv.pop(1))
now, forward = [0], Engine.forward
class Noted(run.Step):
    def __init__(self, *given):
        now[0] = given[1] + 1
        super().__init__(*given)
def poisoned(self, *inputs):
    prediction, loss, *rest = forward(self, *inputs)
    hit = self.module.training and now[0] in steps and os.environ["RANK"] == rank
    return prediction, loss * factor if hit else loss, *rest
run.Step, Engine.forward = Noted, poisoned
run_program(main)
"""
EACH = ["checkpoint.every_samples=12", "log.pictures=0"]  # a commit a step


def poisoned(run, shards, *words, steps: str, rank: int = 0, factor: str = "nan", world: int = 1) -> Finished:
    return pretrain(run, shards, *words, world=world, program=["-c", POISON, steps, str(rank), factor])


def record(run, step):
    return json.loads((run / "checkpoints" / f"{step:09d}" / "COMMIT.json").read_text())


def committed(run):
    return sorted(int(path.parent.name) for path in (run / "checkpoints").glob("*/COMMIT.json"))


def dump(run, rank=0, skipped=None):
    return json.loads((run / "flight" / f"{'' if skipped is None else f'skipped-{skipped}.'}rank{rank}.json").read_text())


def flight(run):
    return sorted(path.name for path in (run / "flight").iterdir())


def assert_kept_after(run, step, commit=None):
    """The weights in flight/ are those of the commit of that step."""
    file = run / "flight" / "weights.safetensors"
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"step": str(step)}
    kept, theirs = load_file(file), tensors(run, commit or step)
    of_commit = {name: value for name, value in theirs.items() if name.startswith("weight/")}
    assert kept.keys() == of_commit.keys() and all(torch.equal(kept[name], of_commit[name]) for name in kept)


def assert_same(a, b):
    ours, theirs = tensors(a, 8), tensors(b, 8)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert metrics(a) == metrics(b)


@pytest.mark.parametrize(
    ("stage", "world"), [(0, 1), (1, 2), *(pytest.param(*each, marks=pytest.mark.long) for each in [(0, 2), (2, 2), (3, 2)])]
)
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all_counted_and_resumed_to_the_same_bits(stage, world, shards, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    words = [
        f"system.zero_stage={stage}",
        "model.drop_path=0",
        "checkpoint.every_samples=48",
        "log={every_steps: 2, pictures: 0, holdout_every_steps: 4}",
    ]
    finished = poisoned(run, shards, *words, steps="3", rank=world - 1, world=world)
    assert finished.status == [0] * world, finished.err[-3000:]
    (note,) = [line for line in finished.out.splitlines() if "the step is skipped" in line]
    assert "step 3 (samples 24:36)" in note and "1 in a row" in note and "max_skipped_steps=3" in note
    assert f"python mpp/replay.py {run}/flight/skipped-3.rank{world - 1}.json" in note
    assert "skipped 1" in finished.out
    rows = metrics(run)
    assert [rows[step]["train/skipped_steps"] for step in (2, 4, 8)] == [0, 1, 1]
    assert all(math.isfinite(rows[step]["train/loss"]) for step in (2, 4, 6, 8))  # of steps 3 and 4: that of 4
    assert [(record(run, step)["skipped_steps"], record(run, step)["optimiser_steps"]) for step in (4, 8)] == [(1, 3), (1, 7)]
    # It came to its end, and what tells of the step stays.
    assert flight(run) == [*(f"skipped-3.rank{rank}.json" for rank in range(world)), "weights.safetensors"]
    shutil.copytree(run, again)
    forget_after(again, 4)
    assert poisoned(again, shards, *words, steps="3", rank=world - 1, world=world).status == [0] * world
    assert_same(run, again)


@pytest.mark.long
def test_a_run_with_a_teacher_goes_on_to_the_same_bits_behind_a_skipped_step(shards, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    words = [*FEATURES, "model.drop_path=0", "log.pictures=0"]
    assert poisoned(run, shards, *words, steps="3").status == [0]
    shutil.copytree(run, again)
    forget_after(again, 4)
    assert poisoned(again, shards, *words, steps="3").status == [0]
    assert_same(run, again)
    averages = [{name: value for name, value in tensors(run, step).items() if name.startswith("ema/")} for step in (2, 4)]
    assert all(torch.isfinite(value).all() for value in averages[1].values())
    assert any(not torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


def test_a_skipped_step_changes_no_weight_and_its_commit_waits_for_the_next_that_is_taken(shards, tmp_path):
    run = tmp_path / "run"
    assert poisoned(run, shards, *EACH, steps="3,4,6").status == [0]
    assert committed(run) == [1, 2, 5, 7, 8]
    assert poisoned(tmp_path / "other", shards, *EACH, "checkpoint.keep_at_samples=[36]", steps="3").status == [0]
    assert committed(tmp_path / "other") == [1, 2, 3, 4, 5, 6, 7, 8]  # what is kept for good is written when it is due
    before, after = tensors(tmp_path / "other", 2), tensors(tmp_path / "other", 3)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_a_commit_that_fell_into_a_skipped_step_is_written_in_the_next(shards, tmp_path):
    assert poisoned(tmp_path / "run", shards, "checkpoint.every_samples=48", "log.pictures=0", steps="4").status == [0]
    assert committed(tmp_path / "run") == [5, 8]


@pytest.mark.parametrize(
    ("stage", "world"), [(0, 2), *(pytest.param(*each, marks=pytest.mark.long) for each in [(0, 1), (1, 2), (2, 1), (3, 2)])]
)
def test_too_many_in_a_row_stop_the_run_with_the_last_commit_as_it_was_and_a_flight_dump_of_each_rank(stage, world, shards, tmp_path):
    run, bad = tmp_path / "run", world - 1
    words = [*EACH, f"system.zero_stage={stage}", "system.max_skipped_steps=2", "log.every_steps=4"]
    finished = poisoned(run, shards, *words, steps="5,6,7,8", rank=bad, world=world)
    assert finished.status == [2] * world, finished.err[-3000:]
    (line,) = finished.error_lines
    assert "the gradient norm of step 5 is not finite (learning rate 0.000" in line and "nor is it up to step 7, 3 in a row" in line
    assert f"python mpp/replay.py {run}/flight/rank{bad}.json" in line and "resume=3" in line
    assert committed(run) == [1, 2, 3, 4]
    for rank in range(world):
        found = dump(run, rank)
        assert found["why"].startswith("the gradient norm of step 5 is not finite") and found["weights"] == 4
        steps = found["steps"]
        assert [each["step"] for each in steps][:7] == [1, 2, 3, 4, 5, 6, 7] and found["rank"] == rank
        assert steps[4]["samples"] == [48, 60] and len(steps[4]["micro_batches"][0]["samples"]) == 12 // world
        assert steps[4]["micro_batches"][0]["position"] == 48 + rank * 12 // world
        assert [math.isfinite(float(each)) for each in steps[4]["losses"]] == [each != bad for each in range(world)]
        assert steps[3]["loss"] == steps[3]["losses"][rank] and math.isfinite(steps[3]["loss"])
        assert steps[3]["gradient_norm"] > 0 and steps[4]["gradient_norm"] in ("nan", "inf")
    assert_kept_after(run, 4)
    assert [dump(run, bad, skipped)["weights"] for skipped in (5, 6)] == [4, 4]
    assert f"skipped-7.rank{bad}.json" not in flight(run)


SELDOM = ["checkpoint.every_samples=48", "log.pictures=0", "log.every_steps=99"]  # what all ranks agree on is heard a step later


def test_a_skipped_step_is_written_down_by_each_rank_with_the_weights_of_the_step_behind_where_those_have_moved(shards, tmp_path):
    run = tmp_path / "run"
    assert poisoned(run, shards, *SELDOM, "system.micro_batch_max=3", steps="3", rank=1, world=2).status == [0, 0]
    found = [dump(run, rank, 3) for rank in range(2)]
    for rank, each in enumerate(found):
        assert each["why"] == "the gradient of step 3 was not finite: it was skipped" and (each["step"], each["rank"]) == (3, rank)
        assert (each["weights"], each["average"]) == (4, None)
        (step,) = each["steps"]
        assert step["samples"] == [24, 36] and [batch["position"] for batch in step["micro_batches"]] == [24 + 6 * rank, 27 + 6 * rank]
        assert step["gradient_norm"] == "nan" and [math.isfinite(float(loss)) for loss in step["losses"]] == [True, False]
    assert_kept_after(run, 4)
    assert poisoned(tmp_path / "at once", shards, *EACH, steps="3").status == [0]
    assert dump(tmp_path / "at once", 0, 3)["weights"] == 2  # a step that commits hears at once
    assert_kept_after(tmp_path / "at once", 2)


def test_of_many_skipped_steps_the_newest_stay_and_the_weights_of_one_of_them(shards, tmp_path):
    run = tmp_path / "run"
    words = [*SELDOM, "optim.total_samples=192", "checkpoint.keep_at_samples=[144]"]
    finished = poisoned(run, shards, *words, steps="3,4,7,9,11")
    assert finished.status == [0], finished.err[-3000:]
    assert finished.out.count("the step is skipped") == 5
    assert flight(run) == sorted([*(f"skipped-{step}.rank0.json" for step in (4, 7, 9, 11)), "weights.safetensors"])
    assert [dump(run, 0, step)["weights"] for step in (4, 7, 9, 11)] == [2, None, None, 12]
    assert_kept_after(run, 12)


def test_where_weights_cannot_be_kept_the_run_goes_on_and_the_dump_says_none(shards, tmp_path):
    run = tmp_path / "run"
    full = "import mpp.train.flight as flight\ndef full(*_):\n    raise OSError(28, 'No space left on device')\nflight.Flight.keep_weights = full\n"
    program = ["-c", full + POISON, "3", "0", "nan"]
    finished = pretrain(run, shards, *SELDOM, program=program)
    assert finished.status == [0] and "skipped-3.rank0.json" in finished.out, finished.err[-3000:]
    assert dump(run, 0, 3)["weights"] is None and flight(run) == ["skipped-3.rank0.json"]


def test_a_stop_that_is_heard_of_a_step_later_says_of_which_step_its_weights_are(shards, tmp_path):
    run = tmp_path / "run"
    assert poisoned(run, shards, *SELDOM, "system.max_skipped_steps=0", steps="6").status == [2]
    assert (dump(run)["weights"], dump(run)["step"]) == (7, 7)  # the seventh was finite
    assert flight(run) == ["rank0.json", "weights.safetensors"]


def test_a_run_whose_first_step_is_not_finite_stops_at_once(shards, tmp_path):
    finished = poisoned(tmp_path / "run", shards, *EACH, steps="1")
    assert finished.status == [2]
    assert (
        "the gradient norm of step 1 is not finite" in finished.error_lines[0]
        and "no checkpoint was written yet" in finished.error_lines[0]
    )


@pytest.mark.long
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_so_it_does_at_each_zero_stage(stage, shards, tmp_path):
    finished = poisoned(tmp_path / "run", shards, *EACH, f"system.zero_stage={stage}", steps="1")
    assert finished.status == [2] and "the gradient norm of step 1 is not finite" in finished.error_lines[0]


def test_an_error_of_any_kind_leaves_a_flight_dump_that_says_why(shards, tmp_path):
    run = tmp_path / "run"
    program = """
import mpp.train.run as run
from mpp.base.errors import run_program
from mpp.pretrain import main
backward = run.Step.backward
def breaking(self, loss):
    backward(self, loss)
    if self.number == 3:
        raise ZeroDivisionError("planted")
run.Step.backward = breaking
run_program(main)
"""
    finished = pretrain(run, shards, "log.every_steps=4", "log.samples=true", program=["-c", program])
    assert finished.status == [1] and "ZeroDivisionError: planted" in finished.err
    found = dump(run)
    assert found["why"] == "ZeroDivisionError('planted')" and found["step"] == 3 and found["weights"] is None
    assert found["config"]["optim"]["base_lr"] == 1e-3 and found["program"] == "mpp/pretrain.py"
    logged = [line.split("\t") for line in (run / "samples.rank0.tsv").read_text().splitlines()]
    noted = [sample for step in found["steps"] for batch in step["micro_batches"] for sample in batch["samples"]]
    assert noted == [int(line[1]) for line in logged] and len(noted) == 36
    assert [each["loss"] is not None for each in found["steps"]] == [True] * 3
    assert [each["gradient_norm"] == "nan" for each in found["steps"]] == [False, False, True]  # the third was not taken


SIGNALS = """
import os, signal, time
import mpp.train.run as run
from mpp.base.errors import run_program
from mpp.pretrain import main
init = run.Step.__init__
def signalling(self, owner, done):
    init(self, owner, done)
    if self.number == 4 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.{name})
    if self.number == 4 and {sleeps}:
        time.sleep(600)
run.Step.__init__ = signalling
run_program(main)
"""


def test_a_signal_that_is_heeded_leaves_a_dump_of_each_rank_and_a_run_that_goes_on_to_its_end_takes_them_away(shards, tmp_path):
    run = tmp_path / "run"
    stopped = pretrain(
        run, shards, "log.every_steps=4", "log.pictures=0", world=2, program=["-c", SIGNALS.format(name="SIGTERM", sleeps=False)]
    )
    assert stopped.status == [AGAIN, AGAIN] and "stopped as asked at step" in stopped.out
    ours, theirs = dump(run, 0), dump(run, 1)
    assert ours["why"] == theirs["why"] == f"stopped as asked at step {ours['step']}" and ours["step"] in (4, 5)
    assert [each["losses"] for each in ours["steps"]] == [each["losses"] for each in theirs["steps"]]
    assert [each["losses"][1] for each in ours["steps"]] == [each["loss"] for each in theirs["steps"]]
    assert ours["weights"] is None and not (run / "flight" / "weights.safetensors").exists()
    succeed(run, shards, "log.pictures=0", world=2)
    assert not (run / "flight").exists()


def test_a_rank_that_is_ended_because_another_was_killed_leaves_its_own(shards, tmp_path):
    run = tmp_path / "run"
    killed = pretrain(
        run, shards, "log.every_steps=9", "log.pictures=0", world=2, program=["-c", SIGNALS.format(name="SIGKILL", sleeps=False)]
    )
    assert killed.status[1] == -9 and killed.status[0] == AGAIN
    assert not (run / "flight" / "rank1.json").exists()  # nothing can be done about that
    found = dump(run, 0)
    assert "another process" in found["why"] and [each["step"] for each in found["steps"]][:3] == [1, 2, 3]
    assert len(found["steps"][2]["micro_batches"][0]["samples"]) == 6


@pytest.mark.long
def test_a_rank_that_stands_still_because_another_was_killed_is_ended_with_its_dump(shards, tmp_path):
    run = tmp_path / "run"
    program = ["-c", SIGNALS.format(name="SIGKILL", sleeps=True)]
    killed = pretrain(run, shards, "log.every_steps=9", "log.pictures=0", world=2, program=program)
    assert killed.status == [AGAIN, -9]
    found = dump(run, 0)
    assert found["why"] == "ended by the watchman, because of another process" and [each["step"] for each in found["steps"]] == [1, 2, 3, 4]
    assert {each["loss"] for each in found["steps"]} == {None}  # of the device nothing is asked any more


# ---------------------------------------------------------------------------------------------------------------- loss spikes


def test_a_loss_spike_is_told_once_with_its_samples_and_counted_across_a_resume(shards, tmp_path, monkeypatch):
    run, again = tmp_path / "run", tmp_path / "again"
    words = ["optim.total_samples=960", "checkpoint.every_samples=480", "log={every_steps: 10, holdout_every_steps: 80, pictures: 0}"]
    finished = poisoned(run, shards, *words, steps="66,67", factor="9")
    assert finished.status == [0], finished.err[-3000:]
    (note,) = [line for line in finished.out.splitlines() if "loss spike" in line]
    assert "in step 66, " in note and "data.skip_samples=780:792 resume=40, the newest checkpoint before it" in note
    rows = metrics(run)
    assert [rows[step]["train/loss_spikes"] for step in (60, 70, 80)] == [0, 1, 1]
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "000000080")
    assert "in step 66, " in poisoned(again, shards, *words, steps="66,67", factor="9").out  # what it knew of step 40 stands in the commit
    assert metrics(again)[80]["train/loss_spikes"] == 1
    assert record(again, 80)["spikes"] == record(run, 80)["spikes"]


# ------------------------------------------------------------------------------------------------------- samples passed over


def samples(run):
    return {
        int(line.split("\t")[0]): line.split("\t")[1:] for path in run.glob("samples.rank*.tsv") for line in path.read_text().splitlines()
    }


def test_steps_that_see_a_skipped_position_are_passed_over_and_what_comes_behind_is_unchanged(shards, tmp_path):
    plain, run, again = tmp_path / "plain", tmp_path / "run", tmp_path / "again"
    words = [*EACH, "log.samples=true"]
    succeed(plain, shards, *words)
    finished = succeed(run, shards, *words, "--skip-samples", "25:37")  # of steps 3 and 4, rounded outwards
    assert "positions 25:37 are passed over" in finished.out
    ours, theirs = samples(run), samples(plain)
    assert sorted(theirs.keys() - ours.keys()) == list(range(24, 48))
    assert all(ours[position] == theirs[position] for position in ours)
    before, after = tensors(run, 2), tensors(run, 4)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert [record(run, step)["optimiser_steps"] for step in (2, 3, 4, 8)] == [2, 2, 2, 6]
    assert [record(run, step)["samples_seen"] for step in (2, 3, 4, 8)] == [24, 36, 48, 96]
    for step in range(1, 9):
        assert metrics(run)[step]["optim/learning_rate"] == metrics(plain)[step]["optim/learning_rate"]

    # On from an earlier commit of the run that has trained on them: no word more is needed, and it is the same run.
    shutil.copytree(plain, again)
    forget_after(again, 2)
    finished = succeed(again, shards, *words, "data.skip_samples=25:37")
    assert "from step 2 on data.skip_samples=[[25, 37]] (before: [])" in finished.out
    assert_same(run, again)


@pytest.mark.long
@pytest.mark.parametrize("step", [3, 6])
def test_a_resume_inside_and_behind_what_is_passed_over_is_the_same_run(step, shards, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    words = [*EACH, "data.skip_samples=25:37"]
    succeed(run, shards, *words)
    shutil.copytree(run, again)
    forget_after(again, step)
    succeed(again, shards, *words)
    assert_same(run, again)


@pytest.mark.long
def test_another_number_of_processes_passes_over_the_same_steps(shards, tmp_path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    words = [*EACH, "log.samples=true", "model.drop_path=0", "data.skip_samples=[[30, 31], [60, 72]]"]
    succeed(run, shards, *words)
    shutil.copytree(run, moved)
    forget_after(moved, 2)
    succeed(moved, shards, *words, "system.zero_stage=1", world=2)
    assert samples(moved) == samples(run) and len(samples(run)) == 72
    ours, theirs = tensors(run, 8), tensors(moved, 8)
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=0, atol=2e-4), name


def test_what_was_trained_on_cannot_be_passed_over_any_more(shards, tmp_path):
    run = tmp_path / "run"
    succeed(run, shards, *EACH, "optim.total_samples=96")
    forget_after(run, 5)
    finished = pretrain(run, shards, *EACH, "data.skip_samples=36:48")
    assert finished.status == [2]
    assert (
        "data.skip_samples=36:48: positions 36:48 were trained on before" in finished.error_lines[0]
        and "resume=3" in finished.error_lines[0]
    )
    finished = pretrain(run, shards, *EACH, "data.skip_samples=48:36")
    assert "48:36 holds no position" in finished.error_lines[0]
    finished = pretrain(run, shards, *EACH, "data.skip_samples=soon")
    assert "must be positions of the run as a:b" in finished.error_lines[0]
