"""What a start may ask of a commit, and what it is told to do where it cannot go on."""

import math

import pytest

from mpp.base.errors import CheckpointError
from mpp.config.finetune import FinetuneConfig
from mpp.config.pretrain import PretrainConfig
from mpp.monitor.board import Board
from mpp.train.branch import branch_course, check_branch, find_trunk
from mpp.train.commit import Commit, checkpoint_folder, commits, prune, write_commit
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


TRUNK = {"data": ASKED["data"], "optim": ASKED["optim"] | {"schedule": "constant"}}
COOLED = {"data": ASKED["data"], "optim": ASKED["optim"] | {"schedule": "wsd", "cooldown_samples": 24}}  # from sample 56 on


def test_a_trunk_is_asked_for_another_end_at_any_time_and_begins_no_cycle(tmp_path):
    for step in (4, 10):
        found = course(tmp_path, step, {"optim": {"total_samples": 160}}, TRUNK)
        assert (found.first_step, found.total_steps, found.extended_at, found.began) == (step, 20, (), 0)
        assert found.changes == ({"step": step, "key": "optim.total_samples", "from": 80, "to": 160, "trunk": True},)
    end = {"schedule": "wsd", "cooldown_samples": 40, "cooldown_shape": "linear", "final_lr": 1e-6}
    found = course(tmp_path, 5, {"optim": end}, TRUNK)
    assert {change["key"] for change in found.changes} == {f"optim.{key}" for key in end}
    for key, value in (("base_lr", 1.0), ("warmup_samples", 8), ("weight_decay", 0.5)):
        with pytest.raises(CheckpointError, match=rf"was written with optim\.{key}=.* a resumed run keeps"):
            course(tmp_path, 5, {"optim": end | {key: value}}, TRUNK)


def test_a_cool_down_does_not_begin_in_the_past(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"cooldown_samples=48 of optim\.total_samples=80 begins at 32 samples, before .*; take 40 or fewer"
    ):
        course(tmp_path, 5, {"optim": {"schedule": "wsd", "cooldown_samples": 48}}, TRUNK)
    with pytest.raises(CheckpointError, match=r"optim\.total_samples=80, this run asks for 32"):
        course(tmp_path, 5, {"optim": {"total_samples": 32}}, TRUNK)


def write(tmp_path, asked: dict, *steps: int, **record) -> None:
    for step in steps:
        folder = checkpoint_folder(tmp_path, step)
        folder.mkdir(parents=True)
        (folder / "a").write_text("b")
        config = PretrainConfig.model_validate(asked).model_dump(mode="json")
        files = {"a": {"bytes": 1, "sha256": ""}}
        write_commit(folder, {"step": step, "samples_seen": step * 8, "files": files, "config": config, "manifests": {}} | record)


def test_a_run_that_has_cooled_down_is_trained_on_from_before(tmp_path):
    write(tmp_path, COOLED, 7, 10)
    longer = {"optim": {"total_samples": 160}}
    for step in (9, 10):
        with pytest.raises(
            CheckpointError, match=r"cooled down since 56 samples.* with branch_from=.*000000007 in another .* resume=7, which"
        ):
            course(tmp_path, step, longer, COOLED)
    assert course(tmp_path, 7, longer, COOLED).changes[0]["to"] == 160  # as resume=7 asks for
    assert course(tmp_path, 9, {}, COOLED).first_step == 9


def branch(commit, asked: dict):
    config = PretrainConfig.model_validate(asked)
    return branch_course(commit, str(commit.folder), config, config.optim.total_samples // 8, {}, "the manifest of data.{}")


def test_a_branch_says_where_it_began_and_keeps_what_the_trunk_had(tmp_path):
    write(tmp_path, TRUNK, 5, 6, extended_at=[], changes=[{"step": 2, "key": "optim.clip_norm", "from": 0, "to": 1}])
    commit = find_trunk(str(checkpoint_folder(tmp_path, 5)))
    assert (commit.step, find_trunk(str(tmp_path)).step) == (5, 6)
    found = branch(commit, COOLED)
    assert (found.first_step, found.total_steps, found.began) == (5, 10, 0)
    record = found.record()
    assert [change["key"] for change in record["changes"]] == ["optim.clip_norm", "optim.cooldown_samples", "optim.schedule"]
    assert record["branched_from"] == {
        "asked": str(commit.folder.resolve()), "checkpoint": str(commit.folder), "step": 5, "samples_seen": 40, "commit": commit.seal
    }  # fmt: skip
    again = course_of(Commit(tmp_path, commit.record | record), PretrainConfig.model_validate(TRUNK), 10, lambda optim: 10, {})
    assert again.record()["branched_from"] == record["branched_from"]  # of its own commits, too
    check_branch(tmp_path, Commit(tmp_path, record), str(commit.folder))
    with pytest.raises(
        CheckpointError, match=r"branched from .*000000005; give another run_dir for a new branch, or leave branch_from out"
    ):
        check_branch(tmp_path, Commit(tmp_path, record), str(tmp_path))
    with pytest.raises(CheckpointError, match=r"is no branch; give another run_dir"):
        check_branch(tmp_path, commit, str(tmp_path))


def test_what_is_no_branch_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"branch_from=.* holds no checkpoint that is whole"):
        find_trunk(str(tmp_path))
    of = lambda step, asked: commit_of(checkpoint_folder(tmp_path, step), PretrainConfig.model_validate(asked), step, seal="s")
    with pytest.raises(CheckpointError, match=r"depends on where it ends \(optim\.schedule=cosine\); branches leave from"):
        branch(of(5, ASKED), COOLED)
    with pytest.raises(CheckpointError, match=r"000000008 \(64 samples seen\) lies in the cool-down that began at 56"):
        branch(of(8, COOLED), COOLED)
    with pytest.raises(CheckpointError, match=r"has seen 80 samples; optim\.total_samples must be more"):
        branch(of(10, TRUNK), TRUNK)
    with pytest.raises(CheckpointError, match=r"begins at 56 samples, before .*; take 8 or fewer"):
        branch(of(9, TRUNK), COOLED)
    for section, key, value in (("optim", "base_lr", 1.0), ("data", "flip", False), ("optim", "warmup_samples", 8)):
        other = COOLED | {section: COOLED[section] | {key: value}}
        with pytest.raises(CheckpointError, match=rf"was written with {section}\.{key}=.* a branch keeps all but how it ends: set it back"):
            branch(of(5, TRUNK), other)
    with pytest.raises(CheckpointError, match="is of fine-tuning"):
        branch(commit_of(tmp_path, FinetuneConfig(), 5, program="finetune"), COOLED)


def test_commits_that_are_kept_for_good_are_not_pruned(tmp_path):
    write(tmp_path, TRUNK, 2, 6, kept=True)
    write(tmp_path, TRUNK, 3, 5, 7, 8, 9)
    prune(tmp_path, 2)
    assert [commit.step for commit in commits(tmp_path)] == [9, 8, 6, 2]


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
    if math.isnan(step):
        branch = {"optim": {"base_lr": 0.01}, "resume_changes": (), "branch_from": "a"}
        assert "with optim.base_lr=0.001 resume_changes=optim.base_lr, or" in way_out(tmp_path, branch, step)
    of_repeats = way_out(tmp_path, {"optim": {"base_lr": 0.01}, "resume_changes": ()}, step, repeats=3)
    assert "begin all again with optim.base_lr=0.001" in of_repeats and "resume_changes" not in of_repeats
