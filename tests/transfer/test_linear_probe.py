"""The program, on tiny shards made here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpp import linear_probe
from mpp.errors import CheckpointError, ConfigError, DataError
from tests.forks import run_forked

QUICK = ["features.workers=0", "linear.epochs=2", "linear.learning_rates=[0.01, 0.1]", "knn.k=[3, 10]", "few_shot.trials=3"]


def run(out, encoder, *words):
    assert linear_probe.main([f"encoder={encoder}", f"out={out}", *QUICK, *words]) == 0
    return json.loads((out / "results.json").read_text())


def test_one_table_with_baselines_from_train_and_test(tmp_path, splits, encoder_folder, capsys):
    words = [f"train={splits['train']}", f"test={splits['test']}"]
    results = run(tmp_path, encoder_folder, *words)
    shown = capsys.readouterr().out
    assert list(results["rows"]) == ["raw pixels", "random init", "pretrained"]
    for name, row in results["rows"].items():
        assert name in shown and set(row) == {"feature_rank", "linear", "knn", "few_shot"} and set(row["few_shot"]) == {"5", "10"}
        low, high = row["linear"]["ci95"]
        assert low <= row["linear"]["accuracy"] <= high and low < high and row["linear"]["images"] == 60
    assert results["feature_spec"]["layers"] == [2] and results["feature_spec"]["masking"] == "off"
    assert results["reported_on"] == "test" and results["test_reads"] == 1 and "read the split 1 time," in shown
    assert results["fit_images"] + results["holdout_images"] == 120
    assert len(results["rows"]["pretrained"]["linear"]["grid"]) == 12 and len(results["rows"]["raw pixels"]["linear"]["grid"]) == 2

    again = run(tmp_path, encoder_folder, *words)
    assert again["test_reads"] == 2 and again["rows"] == results["rows"]  # the same seed, the same figures


def test_permuted_test_labels_change_figures_but_no_choice(tmp_path, splits, encoder_folder):
    honest = run(tmp_path, encoder_folder, f"train={splits['train']}", f"test={splits['test']}")["rows"]
    shuffled = run(tmp_path, encoder_folder, f"train={splits['train']}", f"test={splits['shuffled']}")["rows"]
    for name in honest:
        for probe in ("linear", "knn"):
            assert honest[name][probe]["chosen"] == shuffled[name][probe]["chosen"]
        for shots in ("5", "10"):
            assert honest[name]["few_shot"][shots]["chosen"] == shuffled[name]["few_shot"][shots]["chosen"]
    assert honest["raw pixels"]["linear"]["accuracy"] > shuffled["raw pixels"]["linear"]["accuracy"]


def test_without_test_the_figures_are_on_images_nothing_was_chosen_on(tmp_path, splits, encoder_folder, capsys):
    results = run(tmp_path, encoder_folder, f"train={splits['train']}", "holdout_fraction=0.2", "baselines=false")
    assert results["reported_on"] == "holdout of train" and list(results["rows"]) == ["pretrained"]
    assert results["fit_images"] + results["holdout_images"] + results["reported_images"] == 120
    assert "hold-out of train" in capsys.readouterr().out and not (tmp_path / "test_reads.jsonl").exists()


def test_rank_alone_needs_no_labels(tmp_path, splits, encoder_folder):
    results = run(tmp_path, encoder_folder, f"train={splits['unlabelled']}", "rank_only=true")
    assert all(set(row) == {"feature_rank"} and row["feature_rank"] > 1 for row in results["rows"].values())


def test_the_pretrained_row_is_the_folders_encoder_and_the_random_one_is_not(tmp_path, splits, encoder_folder):
    first = run(tmp_path, encoder_folder, f"train={splits['train']}", "rank_only=true", "seed=0")["rows"]
    assert first["pretrained"]["feature_rank"] != first["random init"]["feature_rank"]
    other = run(tmp_path, encoder_folder, f"train={splits['train']}", "rank_only=true", "seed=1")["rows"]
    assert other["pretrained"]["feature_rank"] == first["pretrained"]["feature_rank"]
    assert other["random init"]["feature_rank"] != first["random init"]["feature_rank"]


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (["train={train}"], ConfigError, "encoder= is missing"),
        (["encoder={encoder}"], ConfigError, "train= is missing"),
        (["encoder={encoder}", "train={unlabelled}"], DataError, "make_shards.py SOURCE OUT --labels.*rank_only=true"),
        (["encoder={encoder}", "train={train}", "test={unlabelled}"], DataError, "test=.* holds no labels"),
        (["encoder={encoder}", "train={train}", "test={train}"], DataError, "is the same split"),
        (["encoder={encoder}", "train={train}", "test={other}"], DataError, "only one of them has 'blue'"),
        (["encoder=/nowhere", "train={train}"], CheckpointError, "/nowhere"),
        (["encoder={encoder}", "train=/nowhere"], DataError, "no such folder of shards"),
        (["encoder={encoder}", "train={train}", "few_shot.shots=[60]", "linear.epochs=1"], DataError, "few_shot.shots=60"),
        (["encoder={encoder}", "train={train}", "linear.epoch=1"], ConfigError, "linear.epochs"),
        (["encoder={encoder}", "train={train}", "features.resolution=18"], ConfigError, "16 and 20"),
    ],
)
def test_what_a_user_can_mend_is_one_line(words, kind, says, splits, encoder_folder, tmp_path):
    places = {**splits, "encoder": encoder_folder}
    with pytest.raises(kind, match=says) as caught:
        linear_probe.main([*(word.format(**places) for word in words), f"out={tmp_path}", "features.workers=0"])
    assert "\n" not in str(caught.value)


def test_results_stay_whole_and_the_run_folder_is_the_place(splits, encoder_folder):
    assert linear_probe.default_out(Path("runs/a")) == linear_probe.default_out(Path("runs/a/encoder")) == Path("runs/a/transfer")
    before = torch.random.get_rng_state()
    run(linear_probe.default_out(encoder_folder), encoder_folder, f"train={splits['train']}", "baselines=false", "few_shot.shots=[]")
    assert torch.equal(before, torch.random.get_rng_state())
    assert sorted(path.name for path in linear_probe.default_out(encoder_folder).iterdir()) == ["results.json"]


def test_the_script_takes_a_file_words_and_local_rank(tmp_path):
    (tmp_path / "probe.yaml").write_text("linear:\n  epochs: 7\nseed: 3\n")
    script = Path(linear_probe.__file__)
    done = subprocess.run(
        [sys.executable, str(script), "--local_rank=0", "--config", str(tmp_path / "probe.yaml"), "seed=4", "--print-config"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "epochs: 7" in done.stdout and "seed: 4" in done.stdout
    failed = run_forked([str(script), "encoder=/nowhere", "train=/nowhere"], cwd=tmp_path, env=os.environ)
    assert failed.returncode == 2 and failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
