"""One table over runs: what stands in one column, what apart, and what is said of it."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mpp import results
from mpp.base.errors import DataError
from mpp.mains.results import tables_of
from mpp.pages.page import table_of
from mpp.transfer.metrics import figures
from mpp.transfer.probes.contract import Answers
from mpp.transfer.probes.linear import layer_curve
from mpp.transfer.results import find_results, write_predictions, write_results

CONFIG = {
    "metric": "accuracy",
    "features": {"layers": [-1]},
    "linear": {"epochs": 30},
    "knn": {"k": [5]},
    "few_shot": {"trials": 5},
    "widen": True,
}


@pytest.fixture(autouse=True)
def one_piece(monkeypatch):
    """No table goes on below: names are folders here, however long."""
    monkeypatch.setattr("mpp.transfer.table.WIDEST", 1000)


def answers_of(right: int | list[int], truth: np.ndarray) -> Answers:
    """Of each run the first so many answers are right."""
    runs = [np.where(np.arange(len(truth)) < count, truth, (truth + 1) % 4) for count in ([right] if isinstance(right, int) else right)]
    predicted = torch.from_numpy(np.stack(runs))
    return Answers(predicted, torch.full(predicted.shape, 0.5))


def measured(
    folder,
    right,
    *,
    identity="t",
    row="pretrained",
    samples=200,
    baseline=True,
    columns=("linear",),
    labels=10,
    about=(),
    config=(),
    random=None,
    shared=0,
):
    """A run of which `right` of 200 answers are right, the first ones; a list: of several draws.  random: likewise, of three initialisations.
    shared: so many images, the first ones, are in train, too."""
    truth = np.arange(samples) % 4
    answers = {row: {column: answers_of(right, truth) for column in columns}}
    if baseline:
        answers["raw pixels"] = {column: Answers(torch.zeros(samples, dtype=torch.int64)) for column in columns}
    if random:
        given = answers_of(random, truth)
        answers["random init"] = {column: Answers(given.predicted[:, None], given.confidence[:, None]) for column in columns}
    rows = {
        name: {
            probe: figures(a.predicted, torch.from_numpy(truth), 4, a.confidence) | {"labels": labels, "holdout_score": 0.5}
            for probe, a in given.items()
        }
        | {"about": {"feature_spec": {"encoder": "same", "resolution": 16}, "parameters": 5}}
        for name, given in answers.items()
    }
    out = folder / "transfer" / "data"
    out.mkdir(parents=True)
    known = {
        "reported_on": "test",
        "reported_images": samples,
        "test_reads": 1,
        "seed": 0,
        "train_images": labels,
        "kind": "probe",
        "classes": list("abcd"),
    }
    data = {"test": {"path": "shards/test", "identity": identity, "images": samples}, "train": {"path": "shards/train", "identity": "i"}}
    write_results(out, {"rows": rows, "data": data, "config": CONFIG | dict(config), **known, **dict(about)})
    reads = [{"id": f"{out} {i}", "test_identity": identity, "folder": str(out)} for i in range(1 + (folder.name == "a"))]
    (out / "test_reads.jsonl").write_text("".join(json.dumps(read) + "\n" for read in reads))
    write_predictions(out, answers, torch.from_numpy(truth), np.arange(samples), np.arange(samples) < shared)
    return folder


def shown(capsys, *folders, words=()) -> str:
    assert results.main([*map(str, folders), *words]) == 0
    return capsys.readouterr().out


def line_of(table: str, name: object) -> list[str]:
    (found,) = [line for line in table.split("\n\n")[0].splitlines() if line.startswith(f"{name} ")]
    return found.removeprefix(str(name)).split()


def test_runs_on_the_same_images_share_a_table_and_baselines_are_shown_once(tmp_path, capsys):
    folders = [measured(tmp_path / "a", 150), measured(tmp_path / "b", 120), measured(tmp_path / "c", 90, identity="other")]
    first, second = shown(capsys, *folders).split("shards/test, 200 images")[1:]
    assert first.split("\n\n")[0].count("raw pixels") == 1 and str(tmp_path / "c") not in first
    assert line_of(first, tmp_path / "a")[0] == "75.00" and line_of(first, tmp_path / "b")[0] == "60.00"
    assert line_of(second, tmp_path / "c")[0] == "45.00" and "read 3 times, for 2 folders" in first


@pytest.mark.parametrize("content", [False, True])
def test_the_same_images_share_a_table_wherever_and_however_they_lie(tmp_path, capsys, content):
    a, b = measured(tmp_path / "a", 150, identity="a"), measured(tmp_path / "b", 120, identity="b" if content else "a")
    path = b / "transfer" / "data" / "results.json"
    path.write_text(path.read_text().replace("shards/test", "/elsewhere/test"))
    for one in (a, b) if content else ():  # sharded otherwise, the same images
        path = one / "transfer" / "data" / "results.json"
        about = json.loads(path.read_text())
        about["data"]["test"]["content"] = "these images"
        path.write_text(json.dumps(about))
    assert shown(capsys, a, b).count("top-1, %") == 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"config": {"linear": {"epochs": 7}}}, "linear.epochs=7"),
        ({"config": {"metric": "balanced_accuracy"}}, 'metric="balanced_accuracy"'),
        ({"config": {"class_weight": "balanced"}}, 'class_weight="balanced"'),
        ({"labels": 100}, "labels=100"),
        ({"right": [120, 130, 140], "baseline": False}, "draws=3"),
        ({"config": {"features": {"layers": [-2]}}}, "features.layers=[-2]"),
    ],
)
def test_what_was_measured_otherwise_stands_apart_and_is_named(tmp_path, capsys, changed, says):
    a = measured(tmp_path / "a", 150)
    b = measured(tmp_path / "b", changed.pop("right", 120), **changed)
    table = shown(capsys, a, b, words=["--compare", "linear", "--json", str(tmp_path / "table.json")])
    first, second = json.loads((tmp_path / "table.json").read_text())
    assert set(first["rows"]) == {"raw pixels", str(a)} and set(second["rows"]) - {"raw pixels"} == {str(b)}
    assert says in second["apart"][0] and f"{says} and not " in table
    assert not any({each["a"], each["b"]} == {str(a), str(b)} for made in (first, second) for each in made["differences"])


def test_one_probe_measured_otherwise_has_a_column_of_its_own_and_no_row_is_hidden(tmp_path, capsys):
    a = measured(tmp_path / "a", 150, columns=("linear", "knn"))
    b = measured(tmp_path / "b", 120, columns=("linear", "knn"), config={"knn": {"k": [20]}})
    table = shown(capsys, a, b)
    assert table.count("top-1, %") == 1 and "k-NN [1]: knn.k=[5]" in table and "k-NN [2]: knn.k=[20]" in table
    assert line_of(table.split("folders\n")[1], a) == ["75.00", "±5.96", "75.00", "±5.96", "-"]


def test_a_baseline_has_what_any_of_the_runs_has_measured_of_it(tmp_path, capsys):
    a, b = measured(tmp_path / "a", 150), measured(tmp_path / "b", 120, columns=("knn",))
    pixels = line_of(shown(capsys, a, b).split("folders\n")[1], "raw pixels")
    assert len(pixels) == 4 and "-" not in pixels


def test_a_baseline_that_was_measured_twice_with_other_figures_is_shown_twice(tmp_path, capsys):
    a, b = measured(tmp_path / "a", 150), measured(tmp_path / "b", 120)
    path = b / "transfer" / "data" / "results.json"
    about = json.loads(path.read_text())
    about["rows"]["raw pixels"]["linear"]["accuracy"] = 0.33
    path.write_text(json.dumps(about))
    table = shown(capsys, a, b).split("folders\n")[1]
    assert next(line for line in table.splitlines() if line.startswith("raw pixels  ")).split()[2] == "25.00"
    assert next(line for line in table.splitlines() if line.startswith(f"raw pixels ({b})")).split()[-2] == "33.00"


def test_runs_that_differ_in_their_seed_alone_are_shown_once_more_together(tmp_path, capsys):
    """Three pretrainings of one recipe: the row of all of them has an interval that covers their seeds."""
    origin = lambda seed: {"encoder": {"digest": f"net {seed}", "pretraining": {"recipe": "r", "seed": seed}}}
    runs = [
        measured(tmp_path / f"seed{seed}", right, about=origin(seed), random=[90, 92, 91]) for seed, right in enumerate((150, 140, 145))
    ]
    other = measured(tmp_path / "other", 100, about={"encoder": {"digest": "x", "pretraining": {"recipe": "q", "seed": 0}}})
    table = shown(capsys, *runs, other, words=["--json", str(tmp_path / "table.json")])
    (made,) = json.loads((tmp_path / "table.json").read_text())
    (name,) = [row for row in made["rows"] if row.startswith("mean of")]
    figure = made["rows"][name]["linear"]
    assert name == f"mean of 3 seeds ({runs[0]}, ...)" and figure["accuracy"] == pytest.approx(0.725) and figure["seeds"] == 3
    assert figure["ci95_covers"] == ["test images", "seeds of the network"] and all(str(run) in made["rows"] for run in runs)
    assert {found["of"] for found in made["verdict"]} == {name, str(other)} and f"verdict   {name}: pretraining helped" in table


def test_trainings_of_one_encoder_by_several_seeds_are_draws_of_labels(tmp_path, capsys):
    """One run each shows nothing against training from scratch, whatever its p; several do, if all agree."""

    def tuned(name, right, seed, **encoder):
        config = {"seed": seed, "data": {"labels_per_class": 50}, "optim": {"epochs": 5}}
        about = {"kind": "finetune", "seed": seed, "encoder": {"digest": "net", "init": "pretrained"} | encoder}
        row = "from scratch" if encoder else "fine-tuned"
        return measured(tmp_path / name, right, row=row, baseline=False, columns=("finetune",), about=about, config=config)

    alone = tuned("a", 150, 0), tuned("b", 110, 0, init="random")
    table = shown(capsys, *alone)
    assert "not shown that pretraining helped" in table and "one training each" in table
    more = [tuned(f"a{seed}", 150 - seed, seed) for seed in (1, 2)] + [
        tuned(f"b{seed}", 110 + seed, seed, init="random") for seed in (1, 2)
    ]
    table = shown(capsys, *alone, *more, words=["--json", str(tmp_path / "table.json")])
    (made,) = json.loads((tmp_path / "table.json").read_text())
    (helped,) = [found for found in made["verdict"] if found["over"] == "from scratch"]
    assert helped["outcome"] == "better" and helped["runs"] == [[1, 3], [1, 3]] and "draws of the labels" in helped["ci95_covers"]
    assert "pretraining helped" in table


def test_differences_are_paired_and_written(tmp_path, capsys):
    a, b = measured(tmp_path / "a", 150, baseline=False), measured(tmp_path / "b", 120, baseline=False)
    table = shown(capsys, a, b, words=["--compare", "linear", "--json", str(tmp_path / "table.json")])
    assert "+15.00" in table and "1 x 1 and 1 x 1" in table and "test images" in table
    (difference,) = json.loads((tmp_path / "table.json").read_text())[0]["differences"]
    assert (difference["a_only"], difference["b_only"]) == (30, 0) and 0.05 < difference["ci95"][0] < 0.15 and difference["labels"] == 10


def test_seeds_of_a_recipe_are_compared_as_their_mean_and_never_with_it(tmp_path, capsys):
    """Two recipes of two pretrainings each, and a run alone: three things to compare, not seven."""
    origin = lambda recipe, seed: {"encoder": {"digest": f"{recipe}{seed}", "pretraining": {"recipe": recipe, "seed": seed}}}
    given = {"a0": 150, "a1": 140, "b0": 120, "b1": 124, "c0": 100}
    runs = {name: measured(tmp_path / name, right, about=origin(*name), baseline=name == "a0") for name, right in given.items()}
    table = shown(capsys, *runs.values(), words=["--compare", "linear", "--json", str(tmp_path / "table.json")])
    found = json.loads((tmp_path / "table.json").read_text())[0]["differences"]
    a, b = (f"mean of 2 seeds ({runs[name]}, ...)" for name in ("a0", "b0"))
    told = {each["b"]: (each["a"], each["difference"], each["runs"]) for each in found}
    assert told == {
        "raw pixels": (a, pytest.approx(0.725 - 0.25), [[2, 1], [1, 1]]), str(runs["c0"]): (a, pytest.approx(0.725 - 0.5), [[2, 1], [1, 1]]),
        b: (a, pytest.approx(0.725 - 0.61), [[2, 1], [2, 1]]),
    }  # fmt: skip
    assert table.count(" less ...") == 1 and "seeds of the network" in next(each for each in found if each["b"] == b)["ci95_covers"]


def test_differences_to_another_row_stand_in_a_part_of_their_own(tmp_path, capsys):
    """Of k-NN with another k the first run has none, so there the second is what others are compared to."""
    one, two = {"columns": ("linear",)}, {"columns": ("linear", "linear/last")}
    a, b, c = (
        measured(tmp_path / "a", 150, baseline=False, **one),
        *(measured(tmp_path / name, 120, baseline=False, **two) for name in "bc"),
    )
    table = shown(capsys, a, b, c, words=["--compare", "linear"])
    below = lambda run: table.split(f"{run} less ...")[1].split(" less ...")[0]
    assert line_of(below(a), b)[0] == "linear" and line_of(below(b), c)[0] == "linear/last" and str(a) not in below(b)


def test_a_page_says_once_what_is_known_of_images_seen_before_and_of_whom_where_it_differs(tmp_path):
    known = {"a": "overlap   0 of 200 seen", "b": "overlap   0 of 200 seen", "c": "overlap   7 of 200 seen"}
    runs = {name: str(measured(tmp_path / name, 150, about={"overlap": {"words": words}})) for name, words in known.items()}

    def remarks(*names):
        given = [runs[name] for name in names]
        (table,) = tables_of(find_results(given), given)
        return [words for words in table_of(table, "", [], False).remarks if "seen" in words]

    assert remarks("a", "b") == ["overlap 0 of 200 seen"]
    assert remarks(*"abc") == [f"{runs['a']}, {runs['b']}: overlap 0 of 200 seen", f"{runs['c']}: overlap 7 of 200 seen"]


def test_one_lone_row_is_no_error_and_a_probe_that_nobody_has_is(tmp_path, capsys):
    a = measured(tmp_path / "a", 150, baseline=False)
    assert f"linear: nothing to compare, since {a} alone has figures" in shown(capsys, a, words=["--compare", "linear"])
    with pytest.raises(DataError, match="none of these rows has it; they have linear"):
        results.main([str(a), "--compare", "knn"])
    assert not capsys.readouterr().out


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
    grid = [{"layers": layers, "holdout_score": share} for layers, share in heads]
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
    assert "75.00" in (table := capsys.readouterr().out) and "60.00" in table
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
    table = shown(capsys, *runs)
    assert "7.5" in table and "uncentred only" in table and table.count("shards/t") == 3


def test_images_that_train_holds_too_count_for_no_verdict_and_no_difference(tmp_path, capsys):
    """The run knows the first 60 images by heart, and no other: without them it is no better than pixels."""
    about = {"overlap": {"words": "overlap   60 of 200 test images are also in train, byte for byte"}}
    a = measured(tmp_path / "a", 95, shared=60, about=about)
    b = measured(tmp_path / "b", 60, shared=60, about=about, baseline=False)
    table = shown(capsys, a, b, words=["--compare", "linear", "--json", str(tmp_path / "table.json")])
    (made,) = json.loads((tmp_path / "table.json").read_text())
    (pixels,) = [found for found in made["verdict"] if found["of"] == str(a)]
    assert pixels["images"] == 140 and pixels["outcome"] == "not shown" and pixels["difference"] == pytest.approx(35 / 140 - 35 / 140)
    (other,) = [found for found in made["differences"] if found["b"] == str(b)]
    assert other["images"] == 140 and other["difference"] == pytest.approx(0.25)
    assert f"overlap   {a}, {b}: 60 of 200 test images are also in train, byte for byte" in table


def test_results_of_before_there_were_seeds_and_draws_are_shown_beside_those_of_today(tmp_path, capsys):
    old, new = measured(tmp_path / "old", 150), measured(tmp_path / "new", 120, columns=("linear",))
    path = old / "transfer" / "data" / "results.json"
    about = json.loads(path.read_text())
    linear = {
        key: about["rows"]["pretrained"]["linear"][key]
        for key in ("accuracy", "ci95", "images", "balanced_accuracy", "balanced_ci95", "per_class")
    }
    few = {"accuracy": 0.4, "ci95": [0.3, 0.5], "spread": 0.1, "draws": [0.3, 0.5]}
    about["rows"] = {"pretrained": {"linear": linear | {"holdout_accuracy": 0.7}, "few_shot": {"5": few}, "feature_rank": 4.2}}
    about["config"] = {"linear": {"epochs": 30}}
    path.write_text(json.dumps(about))
    with safe_open(path.parent / "predictions.safetensors", "pt") as file:
        kept = {name: file.get_tensor(name) for name in ("truth", "samples")}
        kept["pretrained/linear/predicted"] = file.get_tensor("pretrained/linear/predicted")[0, 0].long()
    save_file(kept, path.parent / "predictions.safetensors")
    table = shown(capsys, old, new, words=["--compare", "linear"])
    assert "75.00" in table and "60.00" in table and "40.00 ±10.00" in table and "uncentred only" in table
    path = new / "transfer" / "data" / "results.json"
    about = json.loads(path.read_text())
    about["data"]["test"]["content"] = "these images"  # which the older one does not know
    path.write_text(json.dumps(about))
    assert "apart from the first table, since measured otherwise" in shown(capsys, old, new)


def test_a_result_whose_answers_are_lost_keeps_its_row_and_ends_no_table(tmp_path, capsys):
    a, b = measured(tmp_path / "a", 150), measured(tmp_path / "b", 120)
    (a / "transfer" / "data" / "predictions.safetensors").unlink()
    table = shown(capsys, a, b, words=["--compare", "linear", "--json", str(tmp_path / "table.json")])
    (made,) = json.loads((tmp_path / "table.json").read_text())
    assert "75.00" in table and "60.00" in table and str(a) in made["rows"]
    assert "no verdict and no difference without its answers" in table and {found["of"] for found in made["verdict"]} <= {str(b)}


def test_labels_that_are_all_there_are_count_as_no_draw(tmp_path, capsys):
    """train_samples= of as many as there are draws nothing; of fewer, one draw is no evidence."""
    for name, asked in (("all", 50), ("some", 20)):
        run = measured(tmp_path / name, 190, config={"train_samples": asked}, labels=asked)
        path = run / "transfer" / "data" / "results.json"
        about = json.loads(path.read_text())
        about["data"]["train"]["images"] = 50
        path.write_text(json.dumps(about))
        assert ("one draw of" in shown(capsys, run)) == (name == "some")


def test_results_of_before_places_were_chosen_stand_beside_those_of_today(tmp_path, capsys, monkeypatch):
    """The linear probe chose its place then, too, so it shares a column; neighbours did not, and stand apart; the last block has a figure of today's alone."""
    old = measured(tmp_path / "old", 150, columns=("linear", "knn"), baseline=False)
    new = measured(
        tmp_path / "new",
        120,
        columns=("linear", "linear/last", "knn", "knn/last"),
        baseline=False,
        config={"knn": {"k": [5], "curve": True}},
    )
    path = new / "transfer" / "data" / "results.json"
    about = json.loads(path.read_text())
    row = about["rows"]["pretrained"]
    for key in ("linear", "knn"):
        row[key]["last"] = row.pop(f"{key}/last") | {"accuracy": 0.55}
    path.write_text(json.dumps(about))
    monkeypatch.chdir(tmp_path)  # names are short, however long the folder's is: a wide table goes on below
    old, new = old.relative_to(tmp_path), new.relative_to(tmp_path)
    table = shown(capsys, old, new, words=["--compare", "linear", "--json", "table.json"])
    (made,) = json.loads((tmp_path / "table.json").read_text())
    assert list(made["rows"][str(old)]) == ["linear", "knn [1]"]
    assert list(made["rows"][str(new)]) == ["linear", "linear/last", "knn [2]", "knn/last"]
    assert "[1]: knn.curve=false" in table and "[2]: knn.curve=true" in table
    assert table.splitlines()[1].split() == ["top-1,", "%", "linear", "linear,", "last", "k-NN", "[1]", "k-NN", "[2]", "k-NN,", "last"]
    assert line_of(table, old)[0] == "75.00" and line_of(table, new)[2] == "55.00"
    assert [each["probe"] for each in made["differences"]] == ["linear"]  # what only one of them has is compared with nothing
