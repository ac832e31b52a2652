import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mpp.config import PretrainConfig
from mpp.errors import CheckpointError
from mpp.train.commit import (
    Commit,
    checkpoint_folder,
    commits,
    find_commit,
    newest_commit,
    prune,
    read_commit,
    read_config,
    read_tensors,
    write_commit,
)

CONFIG = PretrainConfig.model_validate(
    {"seed": 3, "run_dir": "a: b #c", "target": {"name": "pixels", "loss": "l1"}, "data": {"crop_scale": [0.3, 1.0]}}
)


def put(run_dir: Path, step: int, committed: bool = True, value: float = 0.0) -> Path:
    """A checkpoint of two ranks' files."""
    folder = checkpoint_folder(run_dir, step)
    folder.mkdir(parents=True)
    parts = [{"weight/a": torch.full((3,), value), "exp_avg/a": torch.ones(3)}, {"weight/b.c": torch.arange(4.0)}]
    facts = {}
    for rank, part in enumerate(parts):
        path = folder / f"rank{rank:05d}.safetensors"
        save_file(part, str(path))
        facts[path.name] = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    if committed:
        write_commit(folder, {"step": step, "samples_seen": step * 8, "files": facts, "config": CONFIG.model_dump(mode="json")})
    return folder


def steps(run_dir: Path) -> list[int]:
    return [commit.step for commit in commits(run_dir)]


def test_the_folders_number_is_the_step_in_nine_digits(tmp_path):
    assert checkpoint_folder(tmp_path, 12_500) == tmp_path / "checkpoints" / "000012500"
    put(tmp_path, 12_500)
    assert newest_commit(tmp_path).samples_seen == 100_000


def test_a_folder_without_a_commit_does_not_exist(tmp_path, capsys):
    assert newest_commit(tmp_path) is None
    put(tmp_path, 10)
    put(tmp_path, 20, committed=False)
    (put(tmp_path, 30, committed=False) / "COMMIT.json.tmp").write_text(json.dumps({"format": 1, "step": 30, "files": {}}))
    assert steps(tmp_path) == [10]
    assert newest_commit(tmp_path).step == 10
    assert find_commit(tmp_path, "auto").step == 10
    assert capsys.readouterr().err == ""  # nothing is wrong with a write that was killed


DAMAGES = {
    "a file is missing": lambda folder: (folder / "rank00001.safetensors").unlink(),
    "a file is cut": lambda folder: (folder / "rank00000.safetensors").write_bytes((folder / "rank00000.safetensors").read_bytes()[:-1]),
    "a file is longer": lambda folder: (folder / "rank00000.safetensors").open("ab").write(b"x"),
    "the commit is cut": lambda folder: (folder / "COMMIT.json").write_text((folder / "COMMIT.json").read_text()[:40]),
    "the commit is empty": lambda folder: (folder / "COMMIT.json").write_text(""),
    "the commit is no mapping": lambda folder: (folder / "COMMIT.json").write_text("[1]"),
    "the commit is not text": lambda folder: (folder / "COMMIT.json").write_bytes(b"\xff\xfe\x00"),
    "the commit names no files": lambda folder: (folder / "COMMIT.json").write_text('{"format": 1, "step": 20}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_commit_is_passed_over_with_a_warning(tmp_path, capsys, damage):
    put(tmp_path, 10)
    DAMAGES[damage](put(tmp_path, 20))
    assert newest_commit(tmp_path).step == 10
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ")
    assert "000000020 is passed over" in warning
    assert warning.count("\n") == 1
    assert steps(tmp_path) == [10]


def test_a_turned_bit_is_found_by_the_hash(tmp_path):
    folder = put(tmp_path, 10)
    commit = read_commit(folder)
    commit.verify()
    data = bytearray((folder / "rank00001.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "rank00001.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"rank00001.safetensors is not what was committed"):
        read_commit(folder).verify()


def test_another_format_is_an_error_and_not_passed_over(tmp_path):
    folder = put(tmp_path, 10)
    record = json.loads((folder / "COMMIT.json").read_text())
    (folder / "COMMIT.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        newest_commit(tmp_path)


def test_the_newest_commit_is_by_number(tmp_path):
    for step in (100, 20, 3):
        put(tmp_path, step)
    (tmp_path / "checkpoints" / "notes").mkdir()
    (tmp_path / "checkpoints" / "000000200.old").mkdir()
    assert newest_commit(tmp_path).step == 100
    assert steps(tmp_path) == [3, 20, 100]


def test_resume_auto_starts_fresh_where_nothing_was_committed(tmp_path):
    assert find_commit(tmp_path / "never", "auto") is None
    put(tmp_path, 10, committed=False)
    assert find_commit(tmp_path, "auto") is None


def test_resume_must_is_an_error_where_nothing_was_committed(tmp_path):
    put(tmp_path, 10, committed=False)
    with pytest.raises(CheckpointError, match=r"resume=must.*no commit"):
        find_commit(tmp_path, "must")
    put(tmp_path, 20)
    assert find_commit(tmp_path, "must").step == 20


def test_resume_from_a_number_wants_exactly_that_step(tmp_path):
    put(tmp_path, 10)
    put(tmp_path, 20)
    assert find_commit(tmp_path, 10).step == 10
    with pytest.raises(CheckpointError, match=r"resume=15: .* no checkpoint of step 15; there are: 10, 20"):
        find_commit(tmp_path, 15)
    with pytest.raises(CheckpointError, match="there are: none"):
        find_commit(tmp_path / "never", 0)


@pytest.mark.parametrize("keep", [2, 3])
def test_pruning_keeps_the_newest_commits_and_what_is_being_written(tmp_path, keep):
    for step in (10, 20, 30, 40):
        put(tmp_path, step)
    put(tmp_path, 15, committed=False)
    put(tmp_path, 50, committed=False)
    prune(tmp_path, keep)
    assert steps(tmp_path) == [10, 20, 30, 40][-keep:]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"{step:09d}" for step in [*[10, 20, 30, 40][-keep:], 50]]


def test_a_damaged_commit_does_not_count_among_those_kept(tmp_path):
    for step in (10, 20, 30):
        put(tmp_path, step)
    (tmp_path / "checkpoints" / "000000020" / "rank00000.safetensors").unlink()
    prune(tmp_path, 2)
    assert steps(tmp_path) == [10, 30]


def test_pruning_without_any_commit_deletes_nothing(tmp_path):
    folder = put(tmp_path, 10, committed=False)
    prune(tmp_path, 2)
    assert folder.exists()


def test_tensors_of_all_ranks_come_back_by_name(tmp_path):
    commit = read_commit(put(tmp_path, 10, value=5.0))
    weights = read_tensors(commit, "weight/")
    assert {name: value.tolist() for name, value in weights.items()} == {"a": [5.0] * 3, "b.c": [0.0, 1.0, 2.0, 3.0]}
    assert list(read_tensors(commit, "exp_avg/")) == ["a"]
    with pytest.raises(CheckpointError, match="of another model"):
        read_tensors(commit, "weight/encoder.")


def test_a_file_that_is_no_safetensors_is_named(tmp_path):
    folder = put(tmp_path, 10)
    path = folder / "rank00000.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(CheckpointError, match=r"rank00000.safetensors cannot be read"):
        read_tensors(read_commit(folder), "weight/")


def test_the_config_comes_back_as_it_was(tmp_path):
    assert read_config(read_commit(put(tmp_path, 10))) == CONFIG


def test_writing_a_commit_leaves_no_temporary_file(tmp_path):
    folder = put(tmp_path, 10)
    assert sorted(path.name for path in folder.iterdir()) == ["COMMIT.json", "rank00000.safetensors", "rank00001.safetensors"]
    assert isinstance(read_commit(folder), Commit)
