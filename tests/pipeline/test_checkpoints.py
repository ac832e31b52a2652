"""Checkpoints that are damaged, not finite, of another folder, or of a run that has finished: what a start makes of them."""

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mpp.base.errors import CheckpointError, ConfigError
from mpp.disk.files import sha256_of
from mpp.pretrain import main
from mpp.train.commit import read_commit, write_commit
from tests.pipeline.conftest import ROOT, TINY, Forked, environment, finish, free_port, metrics, pretrain, succeed, tensors
from tests.pipeline.test_resume import assert_same_bits
from tests.train.test_commit import check_every_change

TENSORS = "rank00000.safetensors"


@pytest.fixture(scope="module")
def uninterrupted(shards, tmp_path_factory):
    """Commits of steps 2, 4, 6 and 8, the last."""
    run = tmp_path_factory.mktemp("whole") / "run"
    succeed(run, shards, "log.samples=true")
    return run


@pytest.fixture
def copy(uninterrupted, tmp_path):
    return Path(shutil.copytree(uninterrupted, tmp_path / "run"))


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"{step:09d}"


def turn_a_bit(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_damaged_commits_are_set_aside_aloud_and_the_one_before_is_used(uninterrupted, copy, shards):
    turn_a_bit(checkpoint(copy, 8) / TENSORS)
    step = (checkpoint(copy, 6) / "COMMIT.json").read_bytes().index(b'"step": ') + 8
    turn_a_bit(checkpoint(copy, 6) / "COMMIT.json", step)
    turn_a_bit(copy / "baseline.json", (copy / "baseline.json").read_bytes().index(b'"loss": ') + 9)  # for people: the commit has its own
    finished = succeed(copy, shards, "log.samples=true")
    assert "resumes at step 4" in finished.out
    assert finished.err.count("warning: ") == 2
    assert "000000006 is damaged: COMMIT.json does not fit its own seal; it is set aside as " in finished.err
    assert f"000000008 is damaged: {TENSORS} is not what was committed" in finished.err
    names = sorted(path.name for path in (copy / "checkpoints").iterdir())
    assert names == ["000000002", "000000004", "000000006", "000000006.damaged1", "000000008", "000000008.damaged1"]
    assert_same_bits(uninterrupted, copy)
    assert metrics(copy) == metrics(uninterrupted)
    assert (copy / "samples.rank0.tsv").read_bytes() == (uninterrupted / "samples.rank0.tsv").read_bytes()


def test_where_no_checkpoint_is_whole_nothing_is_trained_renamed_or_cut_back(copy, shards):
    for folder in (copy / "checkpoints").iterdir():
        turn_a_bit(folder / TENSORS)
    before = contents(copy)
    refused = pretrain(copy, shards, "log.samples=true")
    assert refused.status == [2]
    (line,) = refused.error_lines
    assert "is whole (000000008: " in line and "000000002: " in line and "nothing was changed" in line
    assert {**contents(copy), "lock": b""} == {**before, "lock": b""}


def test_a_damaged_step_that_was_asked_for_is_named_and_no_other_is_taken(copy, shards):
    turn_a_bit(checkpoint(copy, 4) / TENSORS)
    before = contents(copy)
    refused = pretrain(copy, shards, "resume=4")
    assert refused.status == [2] and "resume=4: " in refused.err and "000000004 is damaged" in refused.err
    assert contents(copy) == before


def test_a_process_that_sees_another_folder_under_the_runs_name_is_named(uninterrupted, copy, shards, tmp_path):
    own = tmp_path / "of the second host"
    shutil.copytree(uninterrupted, own)
    for step in (6, 8):
        shutil.rmtree(checkpoint(copy, step))
    program = "import mpp.train.gathering as gathering; gathering.STALE_SECONDS = 1.0; from mpp.base.errors import run_program; from mpp.pretrain import main; run_program(main)"
    words = [*TINY, f"data.shards={shards}", "system.micro_batch_max=6", f"run_dir={copy}"]
    command = [sys.executable, "-c", program, *words]
    elsewhere = ["unshare", "--mount", "sh", "-c", f'mount --bind "{own}" "{copy}" && exec "$@"', "sh"]
    if subprocess.run([*elsewhere[:-1], "sh", "true"], capture_output=True).returncode:
        pytest.skip("a process may not have mounts of its own here")
    port = free_port()
    runs = [
        subprocess.Popen(line, cwd=ROOT, env=environment(rank, 2, port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank, line in enumerate((command, [*elsewhere, *command]))
    ]
    texts = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [2, 2], texts
    lines = [line for _, err in texts for line in err.splitlines() if line.startswith("error")]
    assert (
        len(lines) == 1
        and "rank 1 (host " in lines[0]
        and "does not see the folder in which rank 0 works; it must be one folder" in lines[0]
    )
    assert sorted(path.name for path in (own / "checkpoints").iterdir()) == sorted(
        path.name for path in (uninterrupted / "checkpoints").iterdir()
    )


def test_processes_with_other_settings_or_another_mpp_are_named_before_they_train(copy, shards, tmp_path):
    port, other = free_port(), tmp_path / "other"
    shutil.copytree(ROOT / "mpp", other / "mpp", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "mpp" / "base" / "rng.py").open("a") as file:
        file.write("# another version\n")
    words = ["mpp/pretrain.py", *TINY, f"data.shards={shards}", "system.micro_batch_max=6", f"run_dir={copy}"]
    rates = "optim={base_lr: 2e-3, warmup_samples: 24, total_samples: 96}"
    runs = [
        Forked(words, cwd=ROOT, env=environment(0, 2, port)),
        Forked(
            [
                "-c",
                f"import sys; sys.path.insert(0, {str(other)!r}); from mpp.base.errors import run_program; from mpp.pretrain import main; run_program(main)",
                *words[1:],
                rates,
            ],
            cwd=other,
            env=environment(1, 2, port) | {"PYTHONPATH": str(other)},
        ),
    ]
    refused = finish(runs, timeout=60)
    assert refused.status == [2, 2], refused.err
    (line,) = refused.error_lines
    assert "are not alike: rank 1 (host " in line and "has mpp=" in line and "config.optim.base_lr=0.002, rank 0 0.001" in line
    assert "have the same files of mpp on all hosts" in line


@pytest.mark.long
def test_every_turned_bit_of_a_runs_commit_is_noticed_or_harmless(copy):
    folder = checkpoint(copy, 8)
    check_every_change(folder, tuple(1 << bit for bit in range(8)))
    path, whole = folder / TENSORS, (folder / TENSORS).read_bytes()
    commit = read_commit(folder)
    places = [*range(0, 4096, 7), *range(4096, len(whole), 997)]
    with path.open("r+b", buffering=0) as file:
        for at in places:
            os.pwrite(file.fileno(), bytes([whole[at] ^ (1 << at % 8)]), at)
            assert commit.fault(), at
            os.pwrite(file.fileno(), whole[at : at + 1], at)
    assert commit.fault() is None


@pytest.mark.slow
def test_two_processes_agree_on_what_is_damaged_though_only_one_has_read_it(shards, tmp_path):
    run, again = tmp_path / "run", tmp_path / "again"
    succeed(run, shards, "system.micro_batch_max=6", world=2)
    shutil.copytree(run, again)
    turn_a_bit(checkpoint(again, 8) / "rank00001.safetensors")
    finished = succeed(again, shards, "system.micro_batch_max=6", world=2)
    assert "resumes at step 6" in finished.out and finished.err.count("is set aside as") == 1
    assert_same_bits(run, again)


# ------------------------------------------------------------------------------------------------------------- numbers that are not finite


def advice_of(line: str) -> list[str]:
    """The words that an error line says to add to the command."""
    words = shlex.split(line.partition("give the same command with ")[2].partition(" (")[0])
    assert words and all("=" in word for word in words)
    return words


def test_a_state_that_is_not_finite_is_not_committed_and_pushes_out_none_that_is(copy, shards):
    for step in (6, 8):
        shutil.rmtree(checkpoint(copy, step))
    words = ["optim.base_lr=1e38", "optim.weight_decay=1e5", "resume_changes=[optim.base_lr, optim.weight_decay]"]
    broken = pretrain(copy, shards, *words, "checkpoint.every_samples=12", "checkpoint.keep=2")
    assert broken.status == [2], broken.out
    (line,) = broken.error_lines
    assert "after step 5 numbers are not finite in " in line and "tensors (weight/" in line and "this state is not committed" in line
    assert f"the newest good checkpoint is {checkpoint(copy, 4)}: " in line
    assert advice_of(line) == ["optim.base_lr=1e+37", "resume_changes=optim.base_lr,optim.weight_decay"]
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["000000002", "000000004"]


def test_the_advice_after_a_broken_gradient_works_as_it_stands(copy, shards):
    for step in (6, 8):
        shutil.rmtree(checkpoint(copy, step))
    same = "system.fused_attention=false"  # how fast numbers explode is a matter of rounding
    broken = pretrain(copy, shards, "optim.base_lr=1e4", "resume_changes=optim.base_lr", same, "system.max_skipped_steps=1")
    (line,) = broken.error_lines
    assert "the gradient norm of step 7 is not finite" in line
    advice = advice_of(line)  # the commit of step 6 has that gradient, whatever the rate
    assert advice == ["optim.base_lr=1e+03", "resume_changes=optim.base_lr", "resume=4"]
    finished = succeed(copy, shards, *advice, same)
    assert "resumes at step 4" in finished.out and "from step 4 on optim.base_lr=1000.0 (before: 0.001)" in finished.out
    (change,) = json.loads((checkpoint(copy, 8) / "COMMIT.json").read_text())["changes"]
    assert change == {"step": 4, "key": "optim.base_lr", "from": 1e-3, "to": 1e3}
    assert metrics(copy)[5]["optim/learning_rate"] == pytest.approx(1e6 * metrics_of_tiny(5), rel=1e-9)


def metrics_of_tiny(step: int) -> float:
    """The learning rate of a step, counted from 1: warm-up over 24 of 96 samples, 12 a step, peak 1e-3."""
    return 1e-3 * 0.5 * (1 + math.cos(math.pi * ((step - 1) * 12 - 24) / 72))


def test_a_setting_that_changes_results_is_changed_only_when_it_is_named(copy, shards):
    shutil.rmtree(checkpoint(copy, 8))
    words = [*TINY, f"data.shards={shards}", f"run_dir={copy}"]
    with pytest.raises(CheckpointError, match=r"asks for 0\.002; .*on purpose from here on add resume_changes=optim\.base_lr, or give"):
        main([*words, "optim.base_lr=2e-3"])
    with pytest.raises(
        CheckpointError, match=r"target\.bits=3, this run asks for 2; a resumed run keeps what changes results: set it back, or"
    ):
        main([*words, "target.bits=2", "resume_changes=optim.base_lr"])
    for key in ("target.bits", "optim.total_samples", "seed"):
        with pytest.raises(ConfigError, match=f"{key} cannot be changed on resume"):
            main([*words, f"resume_changes={key}"])


def test_weights_that_are_not_finite_are_taken_from_nowhere(copy, shards, tmp_path):
    """As they were committed before anybody looked."""
    for step in (2, 4, 6):
        shutil.rmtree(checkpoint(copy, step))
    folder = checkpoint(copy, 8)
    spoilt = tensors(copy, 8) | {"exp_avg_sq/mask_token": torch.full((1, 1, 32), torch.inf)}
    save_file(spoilt, folder / TENSORS)
    record = json.loads((folder / "COMMIT.json").read_text())
    facts = {"bytes": (folder / TENSORS).stat().st_size, "sha256": sha256_of(folder / TENSORS)}
    write_commit(folder, record | {"files": {TENSORS: facts}})
    for words in ([f"run_dir={tmp_path / 'new'}", f"init_from={copy}"], [f"run_dir={tmp_path / 'new'}", f"init_from={folder}"]):
        with pytest.raises(CheckpointError, match="holds numbers that are not finite, in 1 tensor"):
            main([*TINY, f"data.shards={shards}", *words])
    assert not (tmp_path / "new").exists()
    refused = pretrain(copy, shards)
    assert refused.status == [2] and "not finite, in 1 tensor (exp_avg_sq/mask_token)" in refused.err


# ------------------------------------------------------------------------------------------------------------------- runs that have finished


def test_a_finished_run_says_so_and_touches_nothing(copy, shards):
    before = contents(copy)
    finished = succeed(copy, shards, "log.samples=true")
    assert [line.partition(" ")[0] for line in finished.out.splitlines()][-2:] == ["run", "verdict"]
    assert "already finished at step 8: nothing to do; a larger optim.total_samples trains it on" in finished.out
    assert contents(copy) == before
    turn_a_bit(copy / "encoder" / "model.safetensors")
    succeed(copy, shards, "log.samples=true")
    assert contents(copy) == before


def test_a_finished_run_is_extended_in_a_cycle_of_its_own_and_a_kill_inside_changes_nothing(copy, shards, tmp_path):
    longer = ["optim.total_samples=360", "optim.final_lr=1e-5", "resume_changes=optim.final_lr", "checkpoint.keep=99"]
    finished = succeed(copy, shards, *longer)
    assert "resumes at step 8" in finished.out and "extended at 96 samples" in finished.out and "at step 30" in finished.out
    peak, final, warmup = 1e-3, 1e-5, 24
    for step, values in metrics(copy).items():
        if step > 8:
            done = 12 * (step - 1) - 96
            falling = final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (264 - warmup)))
            rate = final + (peak - final) * done / warmup if done < warmup else falling
            assert values["optim/learning_rate"] == pytest.approx(rate, rel=1e-12), step
    killed = Path(shutil.copytree(copy, tmp_path / "killed"))
    for folder in (killed / "checkpoints").iterdir():
        if int(folder.name) > 10:
            shutil.rmtree(folder)
    assert "resumes at step 10" in succeed(killed, shards, *longer).out
    ours, theirs = tensors(copy, 30), tensors(killed, 30)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics(copy) == metrics(killed)
    again = succeed(copy, shards, *longer, "optim.total_samples=384")
    assert "extended at 96, 360 samples" in again.out
    assert metrics(copy)[31]["optim/learning_rate"] == pytest.approx(final)
    assert json.loads((checkpoint(copy, 32) / "COMMIT.json").read_text())["extended_at"] == [96, 360]


def test_a_run_that_has_not_finished_is_not_extended(copy, shards):
    shutil.rmtree(checkpoint(copy, 8))
    words = [*TINY, f"data.shards={shards}", f"run_dir={copy}"]
    with pytest.raises(CheckpointError, match=r"extended when it has finished, and this one is at step 6 of 8"):
        main([*words, "optim.total_samples=192"])
    with pytest.raises(CheckpointError, match=r"optim\.total_samples=96, this run asks for 60; a resumed run keeps"):
        main([*words, "optim.total_samples=60"])
