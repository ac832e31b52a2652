"""The list of benchmarks that are run again by one command: its programs, sets and records are there."""

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = "".join((ROOT / page).read_text() for page in ("docs/results.md", "docs/speed.md"))


@pytest.fixture
def reproduce(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("reproduce")
    sys.modules.pop("reproduce")


def test_every_command_names_a_program_its_words_and_sets_that_can_be_made(reproduce):
    for record in reproduce.RECORDS:
        program = re.search(r"benchmarks/\w+\.py", record.command)[0]
        source = (ROOT / program).read_text()
        assert all(f'"{word}"' in source for word in re.findall(r"--\w+", record.command)), record.name
        assert set(re.findall(r"{(\w+)}", record.command)) <= {"out", "peers", *reproduce.SETS}, record.name
        for config in re.findall(r"configs/\w+\.yaml", record.command):
            assert (ROOT / config).exists(), record.name


def test_the_table_says_what_every_record_there_is_says_and_what_is_missing(reproduce, capsys):
    assert reproduce.main([]) == 0
    told = capsys.readouterr().out
    for path in reproduce.RESULTS.glob("*.json"):
        if path.stem.partition("-")[2] in reproduce.BY_NAME:
            assert path.stem in told
    assert "not yet measured anywhere: " in told and "sweep" in told.split("not yet measured anywhere: ")[1]


def test_what_fails_does_not_stop_what_follows_and_is_named(reproduce, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    monkeypatch.setattr(
        reproduce, "RECORDS", [reproduce.Record("bad", 1, "exit 3", str), reproduce.Record("good", 1, "echo '{{}}' > {out}", str)]
    )
    monkeypatch.setattr(reproduce, "BY_NAME", {record.name: record for record in reproduce.RECORDS})
    with pytest.raises(reproduce.UserError, match="not measured: bad;"):
        reproduce.main(["--run", "bad", "good", "--device", "here"])
    assert (tmp_path / "here-good.json").exists() and "failed (3)" in capsys.readouterr().out


def test_what_would_not_end_in_time_is_left_and_a_group_has_its_records_in_order(reproduce, tmp_path, monkeypatch, capsys):
    made = "echo '{{}}' > {out}"
    records = [reproduce.Record("first", 2, made, str, gpu=True), reproduce.Record("long", 9, made, str, gpu=True)]
    records += [reproduce.Record("last", 1, made, str, gpu=True), reproduce.Record("other", 1, made, str)]
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    monkeypatch.setattr(reproduce, "RECORDS", records)
    monkeypatch.setattr(reproduce, "BY_NAME", {record.name: record for record in records})
    monkeypatch.setattr(reproduce.torch.cuda, "is_available", lambda: True)
    assert reproduce.main(["--run", "gpu", "--device", "here", "--minutes", "5"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"here-first.json", "here-last.json"}
    told = capsys.readouterr().out
    assert "long: left for another time: about 9 min, and 5.0 are left" in told
