"""What a start may ask of a commit, and what it is told to do where it cannot go on."""

import math

import pytest

from mpp.config.finetune import FinetuneConfig
from mpp.config.pretrain import PretrainConfig
from mpp.errors import CheckpointError
from mpp.monitor.board import Board
from mpp.train.commit import Commit, checkpoint_folder, write_commit
from mpp.train.resume import course_of, way_out
from mpp.train.run_folder import cut_back_logs

ASKED = {"data": {"global_batch": 8}, "optim": {"total_samples": 80, "warmup_samples": 0}}


def commit_of(folder, config, step: int, **record) -> Commit:
    return Commit(folder, {"step": step, "samples_seen": step * 8, "config": config.model_dump(mode="json"), "manifests": {}} | record)


def course(tmp_path, step: int, asked: dict, before: dict = ASKED, **record):
    config = PretrainConfig.model_validate(
        {key: before.get(key, {}) | asked.get(key, {}) for key in ("data", "optim")}
        | {key: value for key, value in asked.items() if key not in ("data", "optim")}
    )
    commit = commit_of(checkpoint_folder(tmp_path, step), PretrainConfig.model_validate(before), step, **record)
    return course_of(commit, config, config.optim.total_samples // 8, lambda optim: optim["total_samples"] // 8, {})


def test_a_start_that_asks_for_the_same_goes_on(tmp_path):
    found = course(tmp_path, 4, {})
    assert (found.first_step, found.total_steps, found.finished, found.began, found.words()) == (4, 10, False, 0, [])
    assert course(tmp_path, 10, {}).finished


def test_the_share_of_bad_samples_that_is_allowed_may_be_raised_as_the_error_says(tmp_path):
    assert course(tmp_path, 4, {"data": {"max_bad_fraction": 0.1}}).first_step == 4


@pytest.mark.parametrize("key", ["base_lr", "final_lr", "weight_decay", "clip_norm", "eps", "warmup_samples"])
def test_what_is_named_may_change_and_is_noted(tmp_path, key):
    changes = {"optim": {key: 7 if key == "warmup_samples" else 0.007}}
    with pytest.raises(CheckpointError, match=f"resume_changes=optim.{key}"):
        course(tmp_path, 4, changes)
    found = course(tmp_path, 4, changes | {"resume_changes": f"optim.{key}"}, changes=[{"step": 2, "key": "a", "from": 0, "to": 1}])
    assert [(change["step"], change["key"]) for change in found.record()["changes"]] == [(2, "a"), (4, f"optim.{key}")]


def test_a_log_line_that_cannot_be_read_is_kept_and_stops_nothing(tmp_path):
    (tmp_path / "samples.rank0.tsv").write_bytes(b"3\ta\n\xff4\tb\n5\tc\n9\td\n1")
    (tmp_path / "bad_samples.rank0.jsonl").write_bytes(
        b'{"position": 3}\n{"position": 9}\n{"position": null}\n{"pos\xff\n{"position": "x"}\n[]\n'
    )
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"samples": 3, "step": 1}\n{"sam\xffples": 4}\n[]\n{"samples": "x"}\n{"samples": 9, "step": 3}\n'
    )
    cut_back_logs(tmp_path, 6)
    Board(tmp_path, 6).close()
    assert (tmp_path / "samples.rank0.tsv").read_bytes() == b"3\ta\n\xff4\tb\n5\tc\n"
    assert (tmp_path / "bad_samples.rank0.jsonl").read_bytes() == b'{"position": 3}\n{"pos\xff\n{"position": "x"}\n[]\n'
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"samples": 3, "step": 1}\n'


def test_only_a_finished_run_is_extended_and_only_by_whole_steps(tmp_path):
    longer = {"optim": {"total_samples": 160}}
    found = course(tmp_path, 10, longer)
    assert (found.first_step, found.total_steps, found.began, found.finished) == (10, 20, 80, False)
    assert course(tmp_path, 10, longer, extended_at=[40]).record()["extended_at"] == [40, 80]
    for step, changes in [(9, longer), (10, {"optim": {"total_samples": 81}}), (10, {"optim": {"total_samples": 72}})]:
        with pytest.raises(CheckpointError, match=r"optim\.total_samples=80, this run asks for"):
            course(tmp_path, step, changes)


def test_a_run_of_another_program_is_not_gone_on_with(tmp_path):
    finetuned = commit_of(checkpoint_folder(tmp_path, 4), FinetuneConfig(), 4)
    config = PretrainConfig.model_validate(ASKED)
    with pytest.raises(CheckpointError, match="was written with"):
        course_of(finetuned, config, 10, lambda optim: optim.get("total_samples", 0) // 8, {})


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            9,
            "000000008: to go on from it at a lower learning rate, give the same command with optim.base_lr=0.001 resume_changes=optim.base_lr (",
        ),
        (
            7,
            "000000004: to go on from it at a lower learning rate, give the same command with optim.base_lr=0.001 resume_changes=optim.base_lr resume=4 (",
        ),
        (3, "leads there at any rate, the oldest is of step 4: begin again with optim.base_lr=0.001, "),
        (math.nan, "no checkpoint was written yet: give the same command with optim.base_lr=0.001"),
    ],
)
def test_the_way_out_leads_to_the_newest_commit_that_can_be_gone_on_from(tmp_path, step, words):
    for made in (4, 8) if step == step else ():
        folder = checkpoint_folder(tmp_path, made)
        folder.mkdir(parents=True)
        (folder / "a").write_text("b")
        write_commit(folder, {"step": made, "samples_seen": 0, "files": {"a": {"bytes": 1, "sha256": ""}}, "config": {}})
    assert words in way_out(tmp_path, {"optim": {"base_lr": 0.01}, "resume_changes": ()}, step)
    of_repeats = way_out(tmp_path, {"optim": {"base_lr": 0.01}, "resume_changes": ()}, step, repeats=3)
    assert "begin all again with optim.base_lr=0.001" in of_repeats and "resume_changes" not in of_repeats
