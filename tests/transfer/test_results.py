"""One table over runs, and differences on the same images."""

import json

import numpy as np
import pytest
import torch

from mpp import results
from mpp.errors import DataError
from mpp.transfer.metrics import figures
from mpp.transfer.probes.contract import Answers
from mpp.transfer.probes.linear import layer_curve
from mpp.transfer.results import find_results, write_predictions, write_results


def measured(folder, right: int, *, identity="t", row="pretrained", samples=200, baseline=True):
    """A run of which `right` of 200 answers are right, the first ones."""
    truth = np.arange(samples) % 4
    predicted = torch.from_numpy(np.where(np.arange(samples) < right, truth, (truth + 1) % 4))
    answers = {row: {"linear": Answers(predicted, torch.full((samples,), 0.5))}}
    if baseline:
        answers["raw pixels"] = {"linear": Answers(torch.zeros(samples, dtype=torch.int64), torch.full((samples,), 0.5))}
    rows = {
        name: {probe: figures(a.predicted, torch.from_numpy(truth), 4, a.confidence) for probe, a in given.items()}
        | {"about": {"feature_spec": {"encoder": "same"}}}
        for name, given in answers.items()
    }
    out = folder / "transfer" / "data"
    out.mkdir(parents=True)
    about = {"reported_on": "test", "reported_images": samples, "test_reads": 1, "seed": 0, "train_images": 10}
    data = {"test": {"path": "shards/test", "identity": identity, "images": samples}, "train": None}
    write_results(out, {"rows": rows, "data": data, **about})
    write_predictions(out, answers, truth, np.arange(samples))
    return folder


def test_runs_on_the_same_images_share_a_table_and_baselines_are_shown_once(tmp_path, capsys):
    folders = [measured(tmp_path / "a", 150), measured(tmp_path / "b", 120), measured(tmp_path / "c", 90, identity="other")]
    assert results.main([str(folder) for folder in folders]) == 0
    shown = capsys.readouterr().out
    first, second = shown.split("\n\n")[:2]
    assert (
        first.count("raw pixels") == 1
        and str(tmp_path / "a") in first
        and str(tmp_path / "b") in first
        and str(tmp_path / "c") not in first
    )
    assert "75.00" in first and "60.00" in first and "45.00" in second and "read 1 time by" in first


def test_the_same_images_under_another_path_share_a_table_wherever_they_lie(tmp_path, capsys):
    a, b = measured(tmp_path / "a", 150), measured(tmp_path / "b", 120)
    path = b / "transfer" / "data" / "results.json"
    path.write_text(path.read_text().replace("shards/test", "/elsewhere/test"))
    assert results.main([str(a), str(b)]) == 0
    assert capsys.readouterr().out.count("top-1 in %") == 1


def test_differences_are_paired_and_written(tmp_path, capsys):
    a, b = measured(tmp_path / "a", 150, baseline=False), measured(tmp_path / "b", 120, baseline=False)
    assert results.main([str(a), str(b), "--compare", "linear", "--json", str(tmp_path / "table.json")]) == 0
    assert "+15.00" in capsys.readouterr().out
    (difference,) = json.loads((tmp_path / "table.json").read_text())[0]["differences"]
    assert (difference["a_only"], difference["b_only"]) == (30, 0) and 0.05 < difference["ci95"][0] < 0.15


@pytest.mark.parametrize(("words", "says"), [(["--compare", "knn"], "fewer than two of these rows have it; they have linear")])
def test_what_cannot_be_compared_is_one_line(tmp_path, words, says):
    with pytest.raises(DataError, match=says):
        results.main([str(measured(tmp_path / "a", 150)), *words])


def test_folders_without_results_and_damaged_ones_are_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no results\.json"):
        find_results([str(tmp_path)])
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        find_results([str(tmp_path)])
    (tmp_path / "x").mkdir()
    one = measured(tmp_path / "x", 10)
    (one / "transfer" / "data" / "predictions.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"predictions\.safetensors cannot be read"):
        find_results([str(one)])[0].predictions()


def test_the_curve_takes_the_best_head_of_each_single_layer():
    heads = [([1], 0.2), ([1], 0.4), ([2], 0.3), ([1, 2], 0.9)]
    grid = [{"layers": layers, "holdout_accuracy": share} for layers, share in heads]
    curve = layer_curve(grid, 10)
    assert [(layer, share) for layer, share, _ in curve] == [(1, 0.4), (2, 0.3)]
    assert all(low < share < high for _, share, (low, high) in curve)


def test_every_row_is_shown_where_one_run_was_measured_twice(tmp_path, capsys):
    run = measured(tmp_path / "a", 150, baseline=False)
    other = measured(tmp_path / "b", 120, row="fine-tuned", baseline=False)
    tuned = json.loads((other / "transfer" / "data" / "results.json").read_text())
    del tuned["data"]["test"]["images"]  # fine-tuning always measures the whole split, and does not say how large it is
    (other / "transfer" / "data" / "results.json").write_text(json.dumps(tuned))
    (other / "transfer" / "data").rename(run / "transfer" / "again")
    assert results.main([str(run), "--json", str(tmp_path / "table.json")]) == 0
    assert "75.00" in (shown := capsys.readouterr().out) and "60.00" in shown
    assert len(json.loads((tmp_path / "table.json").read_text())[0]["rows"]) == 2


def test_a_feature_rank_alone_and_other_subsets_of_a_split_have_tables_of_their_own(tmp_path, capsys):
    runs = [measured(tmp_path / name, 150, baseline=False) for name in "abc"]
    files = [run / "transfer" / "data" / "results.json" for run in runs]
    ranked, *drawn = [json.loads(file.read_text()) for file in files]
    ranked["rows"] = {"pretrained": {"feature_rank": 7.5, "about": {}}}
    ranked["data"] = {"train": {"path": "shards/train", "identity": "i", "images": 10}, "test": None}
    del ranked["reported_on"], ranked["reported_images"], ranked["test_reads"]
    for seed, about in enumerate(drawn):
        about["seed"], about["data"]["test"]["images"] = seed, 1000
    for file, about in zip(files, [ranked, *drawn], strict=True):
        file.write_text(json.dumps(about))
    assert results.main([str(run) for run in runs]) == 0
    shown = capsys.readouterr().out
    assert "7.5" in shown and "uncentred only" in shown and len(shown.strip().split("\n\n")) == 3
