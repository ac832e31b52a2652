import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mpp.base.errors import CheckpointError
from mpp.config.pretrain import PretrainConfig
from mpp.train.commit import (
    MOMENTS,
    Commit,
    DamagedError,
    checkpoint_folder,
    commits,
    find_commit,
    prune,
    read_commit,
    read_config,
    read_tensors,
    set_aside_after,
    whole_commit,
    write_commit,
)

CONFIG = PretrainConfig.model_validate(
    {
        "seed": 3,
        "run_dir": "a: b #c",
        "target": {"name": "pixels", "loss": "l1"},
        "data": {"crop_scale": [0.3, 1.0], "global_batch": 8},
        "optim": {"total_samples": 80, "warmup_samples": 0},
    }
)
TENSORS = "rank00000.safetensors"


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
    return [commit.step for commit in reversed(commits(run_dir))]


def seal_again(folder: Path, **changes) -> None:
    """As a program would write it, not as a disk would change it."""
    record = json.loads((folder / "COMMIT.json").read_text()) | changes
    write_commit(folder, {key: value for key, value in record.items() if key not in ("seal", "format")})


def without_seal(folder: Path, **changes) -> None:
    """As commits were written before there were seals."""
    record = json.loads((folder / "COMMIT.json").read_text()) | changes | {"format": 1}
    (folder / "COMMIT.json").write_text(json.dumps({key: value for key, value in record.items() if key != "seal"}))


def test_the_folders_number_is_the_step_in_nine_digits(tmp_path):
    assert checkpoint_folder(tmp_path, 12_500) == tmp_path / "checkpoints" / "000012500"
    put(tmp_path, 12_500)
    assert whole_commit(tmp_path).samples_seen == 100_000


def test_a_folder_without_a_commit_does_not_exist(tmp_path, capsys):
    assert whole_commit(tmp_path) is None
    put(tmp_path, 10)
    put(tmp_path, 20, committed=False)
    (put(tmp_path, 30, committed=False) / "COMMIT.json.tmp").write_text(json.dumps({"format": 1, "step": 30, "files": {}}))
    assert steps(tmp_path) == [10]
    assert whole_commit(tmp_path).step == 10
    assert find_commit(tmp_path, "auto").step == 10
    assert capsys.readouterr().err == ""  # nothing is wrong with a write that was killed


def overwrite(path: Path, at: int, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] = byte
    path.write_bytes(data)


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def not_a_number(folder: Path) -> None:
    """A whole commit, by all hashes, of a state that nothing can be done with."""
    save_file({"weight/b.c": torch.tensor([0.0, float("nan")])}, folder / TENSORS)
    size, found = (folder / TENSORS).stat().st_size, hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    seal_again(folder, files={TENSORS: {"bytes": size, "sha256": found}})


SEEN = {  # without reading the tensors
    "a file is missing": lambda folder: (folder / TENSORS).unlink(),
    "a file is cut": lambda folder: (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-1]),
    "a file is empty": lambda folder: (folder / TENSORS).write_bytes(b""),
    "a file is longer": lambda folder: (folder / TENSORS).open("ab").write(b"x"),
    "a file is a folder": lambda folder: replaced_by_a_folder(folder / TENSORS),
    "the commit is cut": lambda folder: (folder / "COMMIT.json").write_text((folder / "COMMIT.json").read_text()[:40]),
    "the commit is empty": lambda folder: (folder / "COMMIT.json").write_text(""),
    "the commit is zeros": lambda folder: (folder / "COMMIT.json").write_bytes(b"\0" * 500),
    "the commit is no mapping": lambda folder: (folder / "COMMIT.json").write_text("[1]"),
    "the commit is deep": lambda folder: (folder / "COMMIT.json").write_text("[" * 100_000),
    "the commit is not text": lambda folder: (folder / "COMMIT.json").write_bytes(b"\xff\xfe\x00"),
    "the commit names no files": lambda folder: (folder / "COMMIT.json").write_text('{"format": 1, "step": 20}'),
    "the commit is a folder": lambda folder: replaced_by_a_folder(folder / "COMMIT.json"),
    "the commit points nowhere": lambda folder: [(folder / "COMMIT.json").unlink(), (folder / "COMMIT.json").symlink_to("nowhere")],
    "the checkpoint is a file": replaced_by_a_file,
    "the checkpoint is another's": lambda folder: [shutil.rmtree(folder), shutil.copytree(folder.with_name("000000010"), folder)],
    "a file lies outside": lambda folder: seal_again(folder, files={"../000000010/" + TENSORS: {"bytes": 1, "sha256": ""}}),
    "a file has no facts": lambda folder: seal_again(folder, files={TENSORS: 3}),
    "another step": lambda folder: seal_again(folder, step=24, samples_seen=192),
    "another step, unsealed": lambda folder: without_seal(folder, step=24, samples_seen=192),
    "more samples, unsealed": lambda folder: without_seal(folder, samples_seen=161),
    "a step that is text": lambda folder: without_seal(folder, step="20"),
    "a format of old with a seal that does not fit": lambda folder: overwrite(
        folder / "COMMIT.json", (folder / "COMMIT.json").read_text().index('"format": 2') + 10, ord("1")
    ),
}
READ = {  # by reading them
    "a bit is turned in the tensors": lambda folder: overwrite(folder / TENSORS, -1, 1),
    "a bit is turned in their header": lambda folder: overwrite(folder / TENSORS, 0, 1),
    "the tensors are not finite": not_a_number,
}


@pytest.mark.parametrize("damage", [*SEEN, *READ])
def test_readers_pass_over_a_damaged_commit_aloud_and_leave_it_as_it_is(tmp_path, capsys, damage):
    put(tmp_path, 10)
    folder = put(tmp_path, 20)
    (SEEN | READ)[damage](folder)
    assert whole_commit(tmp_path).step == 10
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ")
    assert "000000020 is passed over, damaged: " in warning
    assert warning.count("\n") == 1
    assert os.path.lexists(folder)
    shutil.rmtree(tmp_path / "checkpoints" / "000000010")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole \(000000020: "):
        whole_commit(tmp_path)
    if folder.is_dir():
        with pytest.raises(CheckpointError, match=r"is damaged: .*; bring it back from a copy, or give another checkpoint$"):
            whole_commit(folder)


@pytest.mark.parametrize("damage", SEEN)
def test_a_run_sees_most_damage_before_its_processes_join(tmp_path, damage):
    put(tmp_path, 10)
    folder = put(tmp_path, 20)
    SEEN[damage](folder)
    assert steps(tmp_path) == [10]
    assert find_commit(tmp_path, "auto").step == find_commit(tmp_path, "must").step == 10
    with pytest.raises(CheckpointError, match=r"000000020 is damaged: .*; bring it back from a copy, or give another checkpoint$"):
        find_commit(tmp_path, 20)
    shutil.rmtree(tmp_path / "checkpoints" / "000000010")
    for resume in ("auto", "must"):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole \(000000020: .*nothing was changed"):
            find_commit(tmp_path, resume)


def test_a_run_whose_only_checkpoints_were_set_aside_damaged_does_not_begin_again_by_itself(tmp_path):
    put(tmp_path, 20).rename(tmp_path / "checkpoints" / "000000020.damaged1")
    with pytest.raises(CheckpointError, match=r"is whole \(000000020\.damaged1\).*give another run_dir or move"):
        find_commit(tmp_path, "auto")


def noticed_or_harmless(folder: Path, record: dict) -> bool:
    try:
        found = read_commit(folder)
    except CheckpointError:
        return True
    return found is not None and found.record == record


def changed_bytes(data: bytes, others: range | tuple[int, ...]) -> list[tuple[int, int]]:
    """(position, byte) of single-byte changes."""
    return [(at, byte ^ other) for at, byte in enumerate(data) for other in others]


def check_every_change(folder: Path, others: range | tuple[int, ...]) -> None:
    """others: what each byte is combined with, exclusively."""
    path = folder / "COMMIT.json"
    whole, record = path.read_bytes(), json.loads(path.read_text())
    unnoticed = []
    with path.open("r+b", buffering=0) as file:
        for at, byte in changed_bytes(whole, others):
            os.pwrite(file.fileno(), bytes([byte]), at)
            if not noticed_or_harmless(folder, record):
                unnoticed.append((at, byte))
            os.pwrite(file.fileno(), whole[at : at + 1], at)
    assert unnoticed == []
    assert read_commit(folder).record == record


def test_every_changed_byte_of_a_commit_is_noticed_or_harmless(tmp_path):
    folder = put(tmp_path, 12)
    check_every_change(folder, (1 << 2,))  # 12 becomes 16 by it
    for path in folder.glob("*.safetensors"):
        whole = path.read_bytes()
        for at, byte in changed_bytes(whole, (1, 128)):
            overwrite(path, at, byte)
            assert read_commit(folder).fault(), (path, at)
            path.write_bytes(whole)
    assert read_commit(folder).fault() is None


@pytest.mark.long
def test_every_single_byte_change_of_a_commit_is_noticed_or_harmless(tmp_path):
    check_every_change(put(tmp_path, 12), range(1, 256))


def test_a_turned_bit_is_found_by_the_hash(tmp_path):
    folder = put(tmp_path, 10)
    commit = read_commit(folder)
    commit.verify()
    overwrite(folder / "rank00001.safetensors", -1, (folder / "rank00001.safetensors").read_bytes()[-1] ^ 1)
    with pytest.raises(DamagedError, match=r"rank00001.safetensors is not what was committed"):
        read_commit(folder).verify()


def test_a_commit_from_before_there_were_seals_is_read(tmp_path):
    folder = put(tmp_path, 10)
    without_seal(folder)
    assert find_commit(tmp_path, "auto").step == whole_commit(tmp_path).step == 10


def test_another_format_is_an_error_and_not_passed_over(tmp_path, monkeypatch):
    put(tmp_path, 10)
    monkeypatch.setattr("mpp.train.commit.FORMAT", 99)
    put(tmp_path, 20)
    monkeypatch.undo()
    for read in (whole_commit, lambda run: find_commit(run, "auto")):
        with pytest.raises(CheckpointError, match="format 99"):
            read(tmp_path)


def test_one_checkpoint_folder_may_be_read_by_its_name(tmp_path):
    folder = put(tmp_path, 10)
    put(tmp_path, 20)
    assert whole_commit(folder).step == 10


def test_the_newest_commit_is_by_number(tmp_path):
    for step in (100, 20, 3):
        put(tmp_path, step)
    (tmp_path / "checkpoints" / "notes").mkdir()
    (tmp_path / "checkpoints" / "000000200.old").mkdir()
    assert find_commit(tmp_path, "auto").step == 100
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


def test_a_damaged_commit_does_not_count_among_those_kept_and_is_set_aside_not_deleted(tmp_path, capsys):
    for step in (10, 20, 30):
        put(tmp_path, step)
    (tmp_path / "checkpoints" / "000000020" / TENSORS).unlink()
    prune(tmp_path, 2)
    assert steps(tmp_path) == [10, 30]
    assert (tmp_path / "checkpoints" / "000000020.damaged1" / "COMMIT.json").exists()
    assert f"000000020 is damaged: {TENSORS} is missing; it is set aside as " in capsys.readouterr().err


def test_going_back_sets_aside_what_was_committed_later(tmp_path):
    for step in (10, 20, 30):
        put(tmp_path, step)
    assert [path.name for path in set_aside_after(tmp_path, 10)] == ["000000020.aside1", "000000030.aside1"]
    assert steps(tmp_path) == [10]


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


def test_readers_of_weights_do_not_read_moments(tmp_path):
    run, folder = tmp_path / "run", put(tmp_path / "run", 2, committed=False)
    path = folder / f"rank00000{MOMENTS}"
    save_file({"exp_avg/z": torch.ones(2)}, str(path))
    files = {
        each.name: {"bytes": each.stat().st_size, "sha256": hashlib.sha256(each.read_bytes()).hexdigest()} for each in folder.iterdir()
    }
    write_commit(folder, {"step": 2, "samples_seen": 16, "files": files, "config": CONFIG.model_dump(mode="json")})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    commit = whole_commit(run)
    assert commit is not None and sorted(commit.of_weights) == [TENSORS, "rank00001.safetensors"]
    assert set(read_tensors(commit, "weight/")) == {"a", "b.c"} and set(read_tensors(commit, "exp_avg/")) == {"a"}
    commit.verify()
    assert "is not what was committed" in str(commit.fault())


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("call", ["read_bytes", "stat", "open"])
def test_a_disk_that_fails_for_a_moment_makes_no_commit_damaged_or_absent(tmp_path, monkeypatch, number, call):
    put(tmp_path, 10)
    put(tmp_path, 20)
    real, left = getattr(Path, call), [1, 1]

    def failing(path: Path, *given, **more):
        if "000000020" in str(path) and path.is_relative_to(tmp_path) and left:
            left.pop()
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *given, **more)

    monkeypatch.setattr(Path, call, failing)
    assert steps(tmp_path) == [10, 20]
    newest = commits(tmp_path)[0]
    left[:] = [1, 1]
    assert newest.step == 20 and newest.fault() is None
    left[:] = [1, 1]
    assert find_commit(tmp_path, "auto").step == 20
    prune(tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000000010", "000000020"]
