"""The table of all small recipes: its page says what its records hold, its series goes on where it was stopped, and its rows differ in their recipe alone."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mpp.base.errors import ConfigError, DataError
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.train.signals import stopped_words
from mpp.transfer.metrics import figures
from mpp.transfer.probes.contract import Answers
from mpp.transfer.results import write_predictions

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # programs there import each other as scripts do

import cifar_records  # noqa: E402
import cifar_runs  # noqa: E402
import cifar_table  # noqa: E402
from cifar_runs import Planned, Series  # noqa: E402

# ---------------------------------------------------------------------------------------------------------------------- the page and its records


def line(kind, run, seeds=1, beside=None, **accuracies):
    """Of `accuracies` in percent, the seeds' own, each with an interval of 2 points to both sides."""
    shown = {}
    for column, values in accuracies.items():
        mean = sum(values) / len(values) / 100
        shown[column.replace("few_shot_", "few_shot/").replace("_last", "/last")] = {
            "accuracy": mean,
            "ci95": [mean - 0.02, mean + 0.02],
            "by_run": [[value / 100] for value in values],
            "labels": 9000,
            "place": "mean of layer 5",
        }
    return {"kind": kind, "run": run, "seeds": seeds, "figures": shown, "beside": beside}


def run(samples=102_400, skill=0.25, seconds=100.4, starts=1):
    environment = {"commit": "abc1234", "cpus": 2, "torch": "2"}
    return {"samples": samples, "holdout_skill": skill, "environment": environment, "cpu_seconds": {"pretrain": seconds}, "starts": starts}


def over_random(low, high):
    return {"over": "random init", "column": "linear", "difference": (low + high) / 2, "ci95": [low, high]}


def records():
    probed = [
        line("raw pixels", "mpp_s0", linear=[38], knn=[37]),
        line("random init", "mpp_s0", 4, linear=[41, 39, 40, 40], knn=[29, 29, 29, 29]),
        line("pretrained", "mpp_s0", linear=[45], knn=[33], beside=over_random(0.03, 0.09)),
        line("pretrained", "mpp_s1", linear=[47], knn=[35], beside=over_random(0.05, 0.11)),
        line(
            "pretrained",
            "mpp_s0",
            2,
            linear=[45, 47],
            linear_last=[44, 46],
            knn=[33, 35],
            knn_last=[30, 34],
            few_shot_10=[22, 24],
            beside=over_random(0.04, 0.1),
        ),
        line("pretrained", "l2_s0", linear=[41], knn=[28], beside=over_random(-0.01, 0.03)),
        line("pretrained", "mpp_15_s0", linear=[44], knn=[31]),
    ]
    tuned = [line("from scratch", "scratch_s0", finetune=[40]), line("fine-tuned", "mpp_s0", finetune=[47])]
    holdout = {"probe": {"images": 1000, "test_reads": 0, "lines": probed}, "finetune": {"images": 5000, "test_reads": 0, "lines": tuned}}
    runs = {"mpp_s0": run(), "mpp_s1": run(skill=0.35, seconds=110.4, starts=2), "l2_s0": run(skill=0.05), "mpp_15_s0": run()}
    return {"runs": runs, "measured": {"hold-out": holdout}}


@pytest.fixture
def files(tmp_path):
    """Records and a page that says what they hold."""
    record, page = tmp_path / "records.json", tmp_path / "page.md"
    record.write_text(json.dumps(records()))
    (tmp_path / "none.json").write_text(json.dumps({"runs": {}, "measured": {}}))
    begin = cifar_table.BEGIN.format
    page.write_text(f"# Before\n\n{begin('records.json')}\n{cifar_table.END}\n\nBetween\n{begin('none.json')}{cifar_table.END}\n\nAfter\n")
    assert cifar_table.main(["--results", str(tmp_path), "--page", str(page)]) == 0
    return record, page


def check(files) -> int:
    return cifar_table.main(["--check", "--results", str(files[0].parent), "--page", str(files[1])])


def test_the_page_says_what_the_committed_records_hold():
    assert cifar_table.main(["--check"]) == 0


def test_a_page_that_was_written_agrees_and_keeps_what_stands_around_the_tables(files):
    assert check(files) == 0
    page = files[1].read_text()
    assert page.startswith("# Before\n\n<!-- ") and page.endswith("<!-- end -->\n\nAfter\n")
    assert page.count("\n\nBetween\n<!-- ") == page.count("Not yet measured.") == 1


def test_a_row_of_several_seeds_shows_their_mean_its_interval_and_each(files):
    rows = [row for row in files[1].read_text().splitlines() if row.startswith("| mean colour")]
    assert rows == [
        "| mean colour | 50 % corrupted | 3-bit mean colour | at least 105 (100, 110) | 0.300 (0.250, 0.350) | 46.0 ±2.0 (45.0, 47.0) "
        "| mean of layer 5 | 45.0 ±2.0 (44.0, 46.0) | 34.0 ±2.0 (33.0, 35.0) | 32.0 ±2.0 (30.0, 34.0) | 23.0 ±2.0 (22.0, 24.0) | 47.0 ±2.0 |"
    ]
    assert "| random initialisation | - | - | - | - | 40.0 ±2.0 (39.0 to 41.0) |" in files[1].read_text()
    assert "| from scratch | - | - | - | - | - | - | - | - | - | - | 40.0 ±2.0 |" in files[1].read_text()


def test_a_row_that_does_not_beat_random_initialisation_is_named(files):
    said = [words for words in files[1].read_text().splitlines() if "random initialisation:" in words]
    assert said == ["* **L2** is not shown to beat random initialisation: linear +1.0 points (-1.0 to +3.0)."]


def test_the_ablation_lays_one_seed_of_both_shares_side_by_side(files):
    rows = files[1].read_text().partition("ablation")[2].splitlines()
    assert "| 3-bit mean colour | 44.0 ±2.0 | 45.0 ±2.0 | 31.0 ±2.0 | 33.0 ±2.0 | - | 47.0 ±2.0 |" in rows
    assert "| pixels | - | 41.0 ±2.0 | - | 28.0 ±2.0 | - | - |" in rows


def test_figures_on_the_test_split_take_the_place_of_those_on_the_holdout(files):
    found = records()
    assert "**Development**" in files[1].read_text()
    found["measured"]["test"] = json.loads(
        json.dumps(found["measured"]["hold-out"]).replace("0.41", "0.43").replace('reads": 0', 'reads": 1')
    )
    files[0].write_text(json.dumps(found))
    assert check(files) == 1
    cifar_table.main(["--results", str(files[0].parent), "--page", str(files[1])])
    assert "test images, which each probing and each fine-tuning has read once." in " ".join(files[1].read_text().split())
    assert "**Development**" not in files[1].read_text() and "| 43.0 ±" in files[1].read_text()


@pytest.mark.parametrize(
    "change", [("38", "39"), ("After", "After"), (cifar_table.END, cifar_table.END)], ids=["a figure", "nothing", "no mark"]
)
def test_a_page_that_was_changed_by_hand_is_noticed(files, change, capsys):
    old, new = change
    files[1].write_text(files[1].read_text().replace(old, new, 1))
    assert check(files) == (old != new)
    assert ("does not say" in capsys.readouterr().out) == (old != new)


def test_a_page_of_no_runs_says_so(files):
    files[0].write_text(json.dumps({"runs": {}, "measured": {}}))
    assert check(files) == 1
    cifar_table.main(["--results", str(files[0].parent), "--page", str(files[1])])
    assert (
        check(files) == 0
        and f"{cifar_table.BEGIN.format('records.json')}\n\nNot yet measured.\n\n{cifar_table.END}" in files[1].read_text()
    )


@pytest.mark.parametrize("page", ["# Before\n", "{begin}", "{end}{begin}", "{begin}{begin}{end}", "{begin}{end}{end}"])
def test_a_page_without_its_marks_is_refused(files, page):
    files[1].write_text(page.format(begin=cifar_table.BEGIN.format("records.json"), end=cifar_table.END))
    with pytest.raises(DataError, match="must hold the line"):
        check(files)


@pytest.mark.parametrize(
    ("content", "why"), [(None, "cannot be read"), ("{", "cannot be read"), ("[]", "no records"), ('{"runs": {}}', "no records")]
)
def test_what_holds_no_records_is_not_printed(tmp_path, content, why):
    if content is not None:
        (tmp_path / "records.json").write_text(content)
    with pytest.raises(DataError, match=why):
        cifar_table.main(["--print", str(tmp_path / "records.json")])


def test_records_that_are_not_there_are_named(files):
    files[0].unlink()
    with pytest.raises(DataError, match=r"names records.json, and there is no .*records.json; write it with"):
        check(files)


@pytest.mark.parametrize(
    ("name", "bug"),
    {
        "together": lambda lines, row: next((each for each in lines if cifar_table.row_of(each) == row), None),  # one seed for all
        "shown": lambda figure: (
            "-" if figure is None else f"{100 * figure['accuracy']:.1f} ±{100 * (figure['ci95'][1] - figure['ci95'][0]):.1f}"
        ),
        "against_random": lambda probed: "",  # losers are not named
        "ablation_table": lambda probed, tuned: "",
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_generator_with_a_bug_disagrees_with_the_page(files, monkeypatch, name, bug):
    monkeypatch.setattr(cifar_table, name, bug)
    assert check(files) == 1


# -------------------------------------------------------------------------------------------------------------------- the records and their runs


def leave(out, run, rows, precision="bf16"):
    """What a finished run's pretraining and probe leave behind: rows by name, each the number of right answers of every seed to 100 images."""
    folder = out / run
    (folder / "stages").mkdir(parents=True)
    for stage in ("pretrain", "hold-out-probe"):
        took = {"command": f"{stage} run_dir=/there seed=0", "wall_seconds": 9.0, "cpu_seconds": 8.0, "ended": "2026-01-01T00:00:00Z"}
        (folder / "stages" / f"{stage}.json").write_text(json.dumps(took))
    metrics = [
        {"samples": 500, "speed/samples_per_second": 100.0},
        {"samples": 1000, "speed/samples_per_second": 50.0},
        {"samples": 1000, "step": 4, "holdout/loss": 0.5, "holdout/skill": 0.2},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in metrics))
    for name, found in (("baseline", {"name": "visible"}), ("environment", {"commit": "abc"})):
        (folder / f"{name}.json").write_text(json.dumps(found))
    (folder / "command.txt").write_text("once\n")
    truth, answers, about = torch.arange(100) % 10, {}, {}
    for name, right in rows.items():
        predicted = torch.stack([torch.where(torch.arange(100) < count, truth, (truth + 1) % 10) for count in right])[:, None]
        answers[name] = {"linear": Answers(predicted)}
        spec = {"precision": "fp32" if name == "raw pixels" else precision}
        told = figures(predicted, truth, 10) | {"labels": 900, "chosen": {"features": "mean of layer 5"}, "holdout_score": 0.4}
        about[name] = {"linear": told, "about": {"feature_spec": spec, "parameters": 0 if name == "raw pixels" else 7}}
    probe = folder / "transfer" / "hold-out" / "probe"
    probe.mkdir(parents=True)
    pretraining = {"recipe": {"row": run.rpartition("_s")[0]}}
    more = {
        "kind": "probe",
        "seed": 0,
        "encoder": {"digest": run, "pretraining": pretraining},
        "config": {"features": {}, "linear": {}},
        "test_reads": 0,
    }
    more |= {"data": {"train": {"identity": "x"}}, "reported_images": 100, "classes": list("abcdefghij")}
    (probe / "results.json").write_text(json.dumps({"rows": about} | more))
    write_predictions(probe, answers, truth, np.arange(100), np.zeros(100, dtype=bool))


def test_records_hold_each_run_all_seeds_together_and_how_far_they_lie_from_random_initialisation(tmp_path):
    leave(tmp_path, "mpp_s0", {"raw pixels": [30], "random init": [40, 42, 44], "pretrained": [60]})
    leave(tmp_path, "mpp_s1", {"pretrained": [70]})
    leave(tmp_path, "l2_s0", {"pretrained": [43]})
    cifar_records.collect(tmp_path, tmp_path / "records.json")
    found = json.loads((tmp_path / "records.json").read_text())
    assert found["runs"]["l2_s0"]["samples"] == 1000 and found["runs"]["l2_s0"]["seconds"] == 15.0
    assert found["runs"]["l2_s0"]["words"] == {"pretrain": ["seed=0"], "hold-out-probe": ["seed=0"]}
    lines = {(each["run"], each["kind"], each["seeds"]): each for each in found["measured"]["hold-out"]["probe"]["lines"]}
    accuracy = {key: round(100 * each["figures"]["linear"]["accuracy"]) for key, each in lines.items()}
    assert accuracy == {
        ("mpp_s0", "raw pixels", 1): 30,
        ("mpp_s0", "random init", 3): 42,
        ("mpp_s0", "pretrained", 1): 60,
        ("mpp_s1", "pretrained", 1): 70,
        ("mpp_s0", "pretrained", 2): 65,
        ("l2_s0", "pretrained", 1): 43,
    }
    gains = {key: lines[key]["beside"]["difference"] for key in lines if key[1] == "pretrained"}
    assert gains["mpp_s0", "pretrained", 2] == pytest.approx(0.23) and gains["l2_s0", "pretrained", 1] == pytest.approx(0.01)
    low, high = lines["l2_s0", "pretrained", 1]["beside"]["ci95"]
    assert low < 0 < high and lines["mpp_s0", "pretrained", 1]["beside"]["ci95"][0] > 0
    assert "L2** is not shown to beat" in cifar_table.against_random(found["measured"]["hold-out"]["probe"]["lines"])
    first = cifar_runs.first_runs(["mpp", "l2"])
    assert cifar_records.linear_on_holdout(tmp_path / "records.json", first) == {"mpp": 0.6, "l2": 0.43}


def test_runs_that_were_measured_in_different_ways_are_no_table(tmp_path):
    leave(tmp_path, "mpp_s0", {"raw pixels": [30], "pretrained": [60]})
    leave(tmp_path, "mae_s0", {"pretrained": [60]}, precision="fp32")
    with pytest.raises(DataError, match="in different ways"):
        cifar_records.collect(tmp_path, tmp_path / "records.json")


# ------------------------------------------------------------------------------------------------------------------------------- the rows


def test_every_small_config_is_a_row_and_every_row_has_its_words():
    configs = {path.stem.removeprefix("cifar_") for path in (ROOT / "configs").glob("cifar_*.yaml")}
    assert configs == set(cifar_runs.rows()) and set(cifar_runs.ROWS) == set(cifar_table.RECIPES)


@pytest.mark.parametrize("row", [row for row in cifar_runs.rows() if row != "mpp"])
def test_rows_differ_from_mpp_in_their_recipe_alone(row):
    trees = [load(PretrainConfig, ROOT / "configs" / f"cifar_{name}.yaml").that_changes_results() for name in ("mpp", row)]
    for tree in trees:
        for section in ("mask", "corruption", "target", "decoder"):
            tree.pop(section)
    if row == "pixio":  # its class tokens are part of it
        assert [tree["model"].pop("class_tokens") for tree in trees] == [1, 8]
    assert trees[0] == trees[1]


# ------------------------------------------------------------------------------------------------------------------------------- the series

STANDIN = """
import os, sys
with open("calls.txt", "a") as calls:
    calls.write(" ".join(sys.argv) + "\\n")
if "breaks" in " ".join(sys.argv):
    sys.exit("it breaks")
for word in sys.argv:
    if word.startswith("run_dir="):
        os.makedirs(word[8:], exist_ok=True)
        if "test=test" not in sys.argv:
            open(word[8:] + "/weights", "w").close()
"""


@pytest.fixture
def series(tmp_path, monkeypatch):
    """call(words): a series whose programs note that they were called; returns its exit status and the new calls."""
    monkeypatch.chdir(tmp_path)
    Path("mpp").mkdir()
    for program in ("pretrain", "linear_probe", "finetune", "fit_codebook"):
        Path(f"mpp/{program}.py").write_text(STANDIN)
    monkeypatch.setattr(cifar_runs, "collect", lambda out, record: None)

    def call(*words):
        Path("calls.txt").write_text("")
        status = cifar_runs.main(["--train", "train", "--out", "out", *words])
        return status, Path("calls.txt").read_text().splitlines()

    return call


def words_of(calls, program):
    return [call.split() for call in calls if call.startswith(f"mpp/{program}.py")]


def test_a_series_that_is_finished_does_nothing_and_other_words_run_again(series):
    status, calls = series("--rows", "mae")
    assert status == 0 and [call.split()[0] for call in calls] == ["mpp/pretrain.py", "mpp/linear_probe.py", "mpp/finetune.py"]
    assert series("--rows", "mae") == (0, [])
    status, calls = series("--rows", "mae", "--probe", "train_samples=99")
    assert status == 0 and [call.split()[0] for call in calls] == ["mpp/linear_probe.py"] and "train_samples=99" in calls[0]


def test_a_run_that_fails_stops_those_that_need_it_alone_and_is_done_again(series, capsys):
    broken = Path("mpp/pretrain.py").read_text().replace('"breaks"', '"cifar_mae.yaml"')
    Path("mpp/pretrain.py").write_text(broken)
    status, calls = series("--rows", "mae", "salt", "l2")
    assert status == 1 and len(words_of(calls, "finetune")) == 1
    said = capsys.readouterr().out
    assert "mae_s0: pretrain ended with 1: it breaks" in said and "salt_s0: mae_s0, which it needs, has failed" in said
    Path("mpp/pretrain.py").write_text(STANDIN)
    status, calls = series("--rows", "mae", "salt", "l2")
    assert status == 0 and [words[2] for words in words_of(calls, "pretrain")] == ["configs/cifar_mae.yaml", "configs/cifar_salt.yaml"]
    assert "target.encoder=out/mae_s0" in words_of(calls, "pretrain")[1]


def test_a_run_that_was_stopped_is_not_finished(series, capsys):
    Path("mpp/pretrain.py").write_text(f"print({stopped_words('at step 3')!r})\nprint('encoder out/mae_s0/encoder')\n")
    status, calls = series("--rows", "mae")
    assert status == 1 and not calls and not list(Path("out/mae_s0/stages").iterdir())
    assert "mae_s0: pretrain was stopped before its end; the same command goes on from there" in capsys.readouterr().out
    Path("mpp/pretrain.py").write_text(STANDIN)
    assert len(series("--rows", "mae")[1]) == 3


def test_the_test_split_is_read_in_the_end_alone_and_once(series):
    with pytest.raises(ConfigError, match=r"no hold-out figures yet of mae_s0, l2_s0; give the command without --test first"):
        series("--rows", "mae", "l2", "--test", "test")
    _, calls = series("--rows", "mae", "l2")
    assert not [call for call in calls if "test=" in call]
    status, calls = series("--rows", "mae", "l2", "--test", "test")
    assert status == 0 and [call.split()[0] for call in calls] == ["mpp/linear_probe.py", "mpp/finetune.py"] * 2
    assert all("test=test" in call and "/transfer/test/" in call for call in calls)
    assert Path("out/l2_s0/transfer/test/finetune/weights").exists()  # nothing is trained again
    assert series("--rows", "mae", "l2", "--test", "test") == (0, [])


def test_the_codebook_is_fitted_before_the_run_that_learns_from_it(series):
    _, calls = series("--rows", "beit", "--pretrain", "data.holdout_samples=64", "optim.total_samples=256")
    assert [call.split()[0] for call in calls][:2] == ["mpp/fit_codebook.py", "mpp/pretrain.py"]
    assert "out=out/beit_s0/codebook.safetensors" in calls[0] and "target.path=out/beit_s0/codebook.safetensors" in calls[1]
    assert "data.holdout_samples=64" in calls[0] and "optim.total_samples" not in calls[0]


def test_the_most_telling_runs_come_first_and_no_name_twice():
    first = [run.name for run in cifar_runs.first_runs(None)]
    assert first[:6] == ["mpp_s0", "mae_s0", "scratch_s0", "data2vec_s0", "ijepa_s0", "crossmae_s0"]
    every = [*cifar_runs.first_runs(None), *cifar_runs.more_seeds(["mpp", "mae"]), *cifar_runs.ablation()]
    names = [run.name for run in every]
    assert len(set(names)) == len(names) and all(run.needs in (None, *names[:place]) for place, run in enumerate(every))
    assert names[-7:] == ["mpp_s1", "mae_s1", "mpp_s2", "mae_s2", "mpp_15_s0", "grid_15_s0", "l2_15_s0"]


def test_further_seeds_go_to_the_best_rows_of_each_kind_on_the_holdout():
    scores = {"mpp": 0.4, "mae": 0.5, "data2vec": 0.45, "ijepa": 0.47, "salt": 0.49, "pixio": 0.48, "crossmae": 0.46, "grid": 0.6}
    assert cifar_runs.best_rows(scores) == ["mpp", "mae", "salt", "pixio"]


def test_a_program_dies_with_the_series_that_has_started_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("sleeps.py").write_text(
        "import os, time\nopen('pid.part', 'w').write(str(os.getpid()))\nos.rename('pid.part', 'pid')\ntime.sleep(60)\n"
    )
    child = os.fork()
    if not child:
        try:
            cifar_runs.once(Series("train", None, Path("out"), 1, [], [], []), Planned("mae"), "pretrain", ["sleeps.py"])
        finally:
            os._exit(1)
    until(lambda: Path("pid").exists())
    program = int(Path("pid").read_text())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    until(lambda: not alive(program))
    assert not (tmp_path / "out/mae_s0/stages/pretrain.json").exists()


def until(true):
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_fault_that_is_no_failure_of_a_run_ends_the_series(series, monkeypatch):
    def broken(out, record):
        raise DataError("no table")

    monkeypatch.setattr(cifar_runs, "collect", broken)
    with pytest.raises(DataError, match="no table"):
        series("--rows", "mae")
