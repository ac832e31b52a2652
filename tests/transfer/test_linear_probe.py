"""The program, on tiny shards made here."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mpp import linear_probe
from mpp.base.errors import CheckpointError, ConfigError, DataError
from mpp.config.probe import ProbeConfig
from mpp.interop.loaded_encoder import LoadedEncoder
from mpp.mains import probe_job
from mpp.transfer.probes.knn import KnnProbe
from mpp.transfer.probes.linear import LinearProbe, layer_curve
from mpp.transfer.probes.logistic import LogisticProbe
from mpp.transfer.table import by_column
from tests.forks import run_forked
from tests.transfer.conftest import make_split

QUICK = [
    "features.workers=0",
    "linear.epochs=2",
    "linear.learning_rates=[0.01, 0.1]",
    "knn.k=[3, 10]",
    "few_shot.trials=3",
    "logistic.strengths=[0.001, 1]",
    "random_inits=2",
    "widen=false",
]


def run(out, encoder, *words):
    assert linear_probe.main([f"encoder={encoder}", f"out={out}", *QUICK, *words]) == 0
    return json.loads((out / "results.json").read_text())


def test_one_table_with_baselines_from_train_and_test(tmp_path, splits, encoder_folder, capsys):
    words = [f"train={splits['train']}", f"test={splits['test']}"]
    results = run(tmp_path, encoder_folder, *words)
    shown = capsys.readouterr().out
    assert list(results["rows"]) == ["majority class", "raw pixels", "random init", "pretrained"]
    assert (
        set(results["rows"]["majority class"]) == {"always", "about"} and results["rows"]["majority class"]["always"]["accuracy"] == 1 / 3
    )
    for name, row in list(results["rows"].items())[1:]:
        assert name in shown and set(row) == {"feature_rank", "linear", "logistic", "knn", "few_shot", "seconds", "about"}
        assert set(row["few_shot"]) == {"1", "5", "10", "25"}
        low, high = row["linear"]["ci95"]
        assert low <= row["linear"]["accuracy"] <= high and low < high and row["linear"]["images"] == 60
        assert (
            row["linear"]["balanced_accuracy"] == pytest.approx(row["linear"]["accuracy"])
            and len(row["linear"]["per_class"]["accuracy"]) == 3
        )
    spec = results["rows"]["pretrained"]["about"]["feature_spec"]
    assert spec["layers"] == [0, 1, 2, 3] and spec["masking"] == "off" and spec["encoder"] == results["encoder"]["digest"]
    assert (
        results["reported_on"] == "test"
        and results["test_reads"] == 1
        and "these 60 test images have been read 1 time, for 1 folder (ledger " in shown
    )
    assert results["fit_images"] + results["holdout_images"] == 120
    assert shown.count("120 of 120 images, 0 repeated") == 4 and "60 of 60 images, 0 repeated" in shown
    assert len(results["rows"]["pretrained"]["linear"]["grid"]) == 24 and len(results["rows"]["raw pixels"]["linear"]["grid"]) == 2
    for picture in results["pictures"]:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    places = [(layer, pooling) for pooling in ("mean", "cls") for layer in range(4)]
    for name in ("random init", "pretrained"):
        for probe in ("linear", "knn"):
            figure = results["rows"][name][probe]
            found = {(one["layer"], one["pooling"]): one["holdout_score"] for one in figure["by_layer"]}
            assert set(places) <= set(found) and figure["last"]["images"] == 60
            assert name == "random init" or (figure["last"]["holdout_score"] <= figure["holdout_score"] and figure["place"] in shown)
    assert "held out of train to choose on" in shown and "linear, last" in shown and "k-NN, last" in shown
    assert "last" not in results["rows"]["raw pixels"]["linear"] and "by_layer" not in results["rows"]["raw pixels"]["knn"]
    assert {"layers.png", "confusion.png", "reliability.png", "regularisation.png", "mistakes.png"} == set(results["pictures"])

    again = run(tmp_path, encoder_folder, *words)
    assert again["test_reads"] == 2 and figures_of(again) == figures_of(results)  # the same seed, the same figures
    assert capsys.readouterr().out.count("from the cache") == 5


def test_classes_without_images_are_said_and_hide_no_figure(tmp_path, encoder_folder, capsys):
    train, test = (
        make_split(tmp_path / name, count=75, seed=seed, classes=["none", *"abc"], first=1) for seed, name in enumerate(("train", "test"))
    )
    results = run(tmp_path / "out", encoder_folder, f"train={train}", f"test={test}", "baselines=false")
    row = results["rows"]["pretrained"]
    assert set(row["few_shot"]) == {"1", "5", "10"} and row["linear"]["per_class"]["images"] == [0, 25, 25, 25]
    shown = capsys.readouterr().out
    assert shown.count("1 of 4 classes have no images: 'none'") == 2
    assert "25 shots are left out: class 'a' has 2" in shown
    assert shown.index("shots are left out") < shown.index("train     ")  # before anything is extracted


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["train_samples=7"],
            r"of 3 classes have too few labelled images .*: '\w+' \(1\).*give a test split \(test=\), .* raise train_samples=7",
        ),
        (
            ["train_samples=4", "test"],
            r"have too few labelled images to hold out .*; give more images of them, raise train_samples=4, or leave",
        ),
        (["few_shot.shots=[33]"], r"few_shot.shots=33: class 'red' has 32 labelled images"),
    ],
)
def test_too_few_images_of_a_class_are_told_by_name_before_anything_is_extracted(
    tmp_path, splits, encoder_folder, monkeypatch, words, says
):
    monkeypatch.setattr(probe_job, "extract", lambda *_, **__: pytest.fail("extracted"))
    words = [f"test={splits['test']}" if word == "test" else word for word in words]
    with pytest.raises(DataError, match=says) as caught:
        run(tmp_path, encoder_folder, f"train={splits['train']}", *words)
    assert ("(test=)" in str(caught.value)) == (says.find("test=") >= 0)  # no advice that was followed already


def figures_of(results):
    return {
        name: {probe: row[probe] for probe in ("linear", "logistic", "knn", "few_shot", "feature_rank")}
        for name, row in results["rows"].items()
        if "linear" in row
    }


def test_the_figures_can_be_recomputed_from_what_lies_on_the_disk(tmp_path, splits, encoder_folder):
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.neighbors import KNeighborsClassifier

    results = run(
        tmp_path, encoder_folder, f"train={splits['train']}", f"test={splits['test']}", "knn.temperatures=[1e6]", "knn.curve=false"
    )
    given = load_file(tmp_path / "predictions.safetensors")
    truth = given["truth"].numpy()
    for name, row in list(results["rows"].items())[1:]:
        for probe, figure in by_column(row).items():
            predicted = given[f"{name}/{probe}/predicted"].numpy()
            draws = 3 if probe.startswith("few_shot/") else 1
            assert predicted.shape == (2 if name == "random init" else 1, draws, 60) and figure["draws"] == draws
            runs = predicted.reshape(-1, 60)
            assert figure["accuracy"] == pytest.approx((runs == truth).mean(), abs=1e-12)
            assert figure["balanced_accuracy"] == pytest.approx(np.mean([balanced_accuracy_score(truth, run) for run in runs]))
    digest, sides = results["encoder"]["digest"], {}
    for folder in (tmp_path / "features").glob("*/"):
        about = json.loads((folder / "features.json").read_text())
        if about["spec"]["encoder"] == digest:
            (last,) = [c for c in about["columns"] if (c["pooling"], c["layer"]) == ("mean", 3)]
            values = np.load(folder / "features.npy")[:, last["start"] : last["stop"]]
            sides[folder.name.split("-")[0]] = values, np.load(folder / "labels.npy")
    row = results["rows"]["pretrained"]["knn"]  # at an enormous temperature every neighbour's vote is the same
    theirs = KNeighborsClassifier(row["chosen"]["k"], metric="cosine").fit(*sides["train"]).predict(sides["test"][0])
    assert (theirs == given["pretrained/knn/predicted"][0, 0].numpy()).mean() > 0.95  # ties of votes may fall otherwise


class Leaks(torch.nn.Module):
    """An encoder of three layers of noise, of which the second alone shows the image's colour, and with it the class."""

    num_prefix_tokens, num_features, feature_info = 0, 3, [{"num_chs": 3}] * 3

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(*(torch.nn.Identity() for _ in range(3)))
        self.norm = torch.nn.Identity()

    def forward_features(self, images):
        for number, block in enumerate(self.blocks):
            noise = (images.flatten(1)[:, number * 40 : number * 40 + 12] * 37).sin().view(-1, 4, 3)
            tokens = block(noise + (40 * images.mean((2, 3))[:, None] if number == 1 else 0))
        return tokens


def test_a_layer_that_gives_the_label_away_is_found_and_no_other(tmp_path, splits, monkeypatch):
    leaking = LoadedEncoder(Leaks().eval(), None, 16, (0.5,) * 3, (0.5,) * 3, "leaks", "leaks", lambda seed: Leaks(), ("leaks", {}))
    monkeypatch.setattr(probe_job, "read_encoder", lambda source: leaking)
    words = ["baselines=false", "linear.epochs=20", "linear.last_layers=[]", f"train={splits['train']}", f"test={splits['test']}"]
    results = run(tmp_path, "leaks", *words)
    row = results["rows"]["pretrained"]
    assert row["linear"]["chosen"]["features"] == "mean of layer 2" and row["linear"]["accuracy"] > 0.85
    assert row["knn"]["place"] == "mean of layer 2" and row["knn"]["accuracy"] > 0.85
    last = [row["logistic"], row["linear"]["last"], row["knn"]["last"]]
    assert all(figure["accuracy"] < 0.6 for figure in last)  # chance is a third
    curve = dict((layer, share) for layer, share, _ in layer_curve(row["linear"]["grid"], results["holdout_images"]))
    assert curve[2] > max(curve[1], curve[3]) + 0.2


@pytest.mark.parametrize("name", ["mae", "attentive"])
def test_protocols_that_augment_stand_in_the_same_table_and_say_that_they_use_no_cached_features(
    tmp_path, splits, encoder_folder, capsys, name
):
    quick = [f"augmented=[{name}]", f"{name}.epochs=2", f"{name}.warmup_epochs=1", f"{name}.batch=64", "baselines=false"]
    results = run(tmp_path, encoder_folder, f"train={splits['train']}", f"test={splits['test']}", *quick)
    row, shown = results["rows"]["pretrained"][name], capsys.readouterr().out
    assert row["images"] == 60 and row["cached_features"] is False and "no cached features" in shown
    assert row["labels"] == (120 if name == "mae" else results["fit_images"])  # one learning rate needs no hold-out
    assert {"mae": "MAE linear", "attentive": "attentive"}[name] in shown


def test_other_encoders_stand_beside_it_under_their_own_preprocessing(tmp_path, splits, encoder_folder):
    words = [f"train={splits['train']}", f"test={splits['test']}", "baselines=false", f"beside=[{encoder_folder}]"]
    results = run(tmp_path, encoder_folder, *words)
    assert list(results["rows"]) == ["majority class", "pretrained", str(encoder_folder)]
    assert results["rows"]["pretrained"]["knn"] == results["rows"][str(encoder_folder)]["knn"]
    gains = [gain for gain in results["gains"] if gain["over"] == str(encoder_folder)]
    assert len(gains) == 9 and all(gain["difference"] == 0 and gain["p"] == 1 for gain in gains)
    (twin,) = [found for found in results["verdict"] if found["over"] == str(encoder_folder)]
    assert twin["outcome"] == "not shown"  # a copy of itself


def test_permuted_test_labels_change_figures_but_no_choice(tmp_path, splits, encoder_folder):
    honest = run(tmp_path, encoder_folder, f"train={splits['train']}", f"test={splits['test']}")["rows"]
    shuffled = run(tmp_path, encoder_folder, f"train={splits['train']}", f"test={splits['shuffled']}")["rows"]
    for name in list(honest)[1:]:
        for probe in ("linear", "logistic", "knn"):
            assert honest[name][probe]["chosen"] == shuffled[name][probe]["chosen"]
            assert honest[name][probe].get("last", {}).get("chosen") == shuffled[name][probe].get("last", {}).get("chosen")
        for shots in ("1", "5", "10", "25"):
            assert honest[name]["few_shot"][shots]["chosen"] == shuffled[name]["few_shot"][shots]["chosen"]
    assert honest["raw pixels"]["linear"]["accuracy"] > shuffled["raw pixels"]["linear"]["accuracy"]


def test_without_test_the_figures_are_on_images_nothing_was_chosen_on(tmp_path, splits, encoder_folder, capsys):
    results = run(tmp_path, encoder_folder, f"train={splits['train']}", "holdout_fraction=0.2", "baselines=false")
    assert results["reported_on"] == "holdout of train" and list(results["rows"]) == ["majority class", "pretrained"]
    assert results["fit_images"] + results["holdout_images"] + results["reported_images"] == 120
    assert "hold-out of train" in capsys.readouterr().out and not (tmp_path / "test_reads.jsonl").exists()


def test_rank_alone_needs_no_labels(tmp_path, splits, encoder_folder):
    results = run(tmp_path, encoder_folder, f"train={splits['unlabelled']}", "rank_only=true")
    assert all(set(row) == {"feature_rank", "about"} and row["feature_rank"]["rank"] > 1 for row in results["rows"].values())


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
        (["encoder={encoder}", "train=/nowhere"], DataError, "no such folder of shards|neither|no such"),
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


def test_a_grid_that_does_not_fit_is_refused_before_anything_is_extracted_and_says_what_to_lower(
    tmp_path, splits, encoder_folder, monkeypatch, capsys
):
    monkeypatch.setattr(probe_job, "TOLD_MEMORY", 0)
    monkeypatch.setattr(probe_job, "free_memory", lambda: 10**6)
    words = [f"encoder={encoder_folder}", f"train={splits['train']}", f"out={tmp_path}", *QUICK, "linear.batch=100000"]
    # 2 rates x 3 classes; of the encoder layers 0 to 3 of 12 columns, mean and class token, and the last 1 and 4 of each pooling and both.
    with pytest.raises(
        ConfigError, match=r"2 learning rates x 3 classes take [\d.]+ MB, and 1 MB of cpu memory are free; lower linear.learning_rates"
    ):
        linear_probe.main(words)
    assert not list((tmp_path / "features").glob("*/features.npy"))
    monkeypatch.setattr(probe_job, "free_memory", lambda: 10**9)
    assert linear_probe.main([*words, "linear.batch=20"]) == 0
    assert re.search(r"memory    linear: [\d.]+ kB a process: ", capsys.readouterr().out)


def test_processes_that_share_a_grid_need_less_each_and_room_for_all_of_a_machine(tmp_path, splits, encoder_folder, monkeypatch):
    """Eight of one machine, more than there are rows of the table: all search at the same time."""
    words = [
        f"encoder={encoder_folder}",
        f"train={splits['train']}",
        f"out={tmp_path}",
        *QUICK,
        "linear.batch=1",
        "logistic.strengths=[]",
        "baselines=false",
    ]
    config = linear_probe.parse(words)
    job = probe_job.prepare(config, words)
    of_one = probe_job.memory_of(job)["linear"][0]
    job.world = replace(job.world, size=8, local_size=8)
    monkeypatch.setattr(probe_job, "together", lambda world, work: work())
    share = probe_job.memory_of(job)["linear"][0]
    assert of_one / 8 < share < of_one / 3 and len(job.rows) < 6
    monkeypatch.setattr(probe_job, "free_memory", lambda: 8 * share)
    probe_job.state_memory(job)
    monkeypatch.setattr(probe_job, "free_memory", lambda: 6 * share)
    with pytest.raises(ConfigError, match=r"linear: .* divided among 8 processes, take [\d.]+ kB in each of 8 processes of a machine"):
        probe_job.state_memory(job)


def test_what_probes_take_is_counted_from_heads_columns_and_batch():
    # ViT-B of 12 blocks: 13 layers x {mean, cls} of 768, the last 1 with both, the last 4 with {mean, cls, both}.
    widths = [768] * 26 + [1536, 3072, 3072, 6144]
    needed, words = LinearProbe().memory(widths, 21_841)
    heads = 13 * 21_841
    weights, biases = 4 * heads * sum(widths), 4 * heads * len(widths)
    block = 4 * 21_841 * 1024  # of one learning rate, as so many classes are rows enough
    assert needed == 2 * (weights + biases) + 3 * block and 77e9 < needed < 78e9
    divided = LinearProbe().memory(widths, 21_841, 8)[0] - 3 * block
    largest = 2 * 4 * 21_841 * 6145  # a head on all of the last 4 layers
    assert 0 < divided - 2 * (weights + biases) / 8 < largest
    assert (
        LinearProbe().memory(widths, 21_841, 512)[0] == 2 * largest + 3 * block
    )  # what is trained at the end: one for the choice, one for the last block
    assert words.startswith("30 places in the encoder x 13 learning rates x 21,841 classes; lower linear.learning_rates")
    assert LogisticProbe().memory([768], 1000)[0] == 4 * 768 * 1000 * (40 + 8 + 8)
    assert LogisticProbe(strengths=()).memory([768], 1000)[0] == KnnProbe().memory(widths, 1000)[0] == 0


def test_extracting_alone_reads_no_test_split_and_the_probe_finds_all_of_it(tmp_path, splits, encoder_folder, capsys):
    words = [f"train={splits['train']}", f"test={splits['test']}", f"ledger={tmp_path / 'ledger'}"]
    assert linear_probe.main([f"encoder={encoder_folder}", f"out={tmp_path / 'out'}", *QUICK, *words, "extract_only=true"]) == 0
    assert not (tmp_path / "ledger").exists() and not (tmp_path / "out" / "results.json").exists()
    assert "without extract_only=true probes them" in capsys.readouterr().out
    results = run(tmp_path / "out", encoder_folder, *words)
    shown = capsys.readouterr().out
    assert shown.count("from the cache") == 5 and " images/s by " not in shown  # four tables of train, and of test the encoder's is told
    assert results["test_reads"] == 1


def test_results_stay_whole_and_the_run_folder_is_the_place(splits, encoder_folder):
    run_folder = encoder_folder.parent
    for encoder in (run_folder, encoder_folder):
        assert probe_job.default_out(str(encoder), "data/shards/train") == run_folder / "transfer" / "shards"
    assert probe_job.default_out("timm:resnet18", "cifar10:data") == Path("runs/timm-resnet18/transfer/cifar10-data")
    assert probe_job.default_out(str(encoder_folder), "cifar10:/a") != probe_job.default_out(str(encoder_folder), "cifar100:/a")
    assert probe_job.default_out(str(encoder_folder), ".").name == Path.cwd().name
    out = probe_job.default_out(str(encoder_folder), "shards/train")
    before = torch.random.get_rng_state()
    run(out, encoder_folder, f"train={splits['train']}", "baselines=false", "few_shot.shots=[]", "logistic.strengths=[]")
    assert torch.equal(before, torch.random.get_rng_state())
    assert not [path for path in out.rglob("*") if "tmp" in path.name]


def test_figures_of_other_data_are_not_overwritten_unasked(tmp_path, splits, encoder_folder):
    shutil.copytree(encoder_folder, tmp_path / "encoder")
    for name, split in (("a", "train"), ("b", "other")):
        shutil.copytree(splits[split], tmp_path / name / "data" / "train")
    words = [f"encoder={tmp_path / 'encoder'}", "features.workers=0", "rank_only=true", "baselines=false"]
    for _ in range(2):
        assert linear_probe.main([f"train={tmp_path}/a/data/train", *words]) == 0
    with pytest.raises(ConfigError, match=r"holds figures of train=.*a/data/train, other images than .*; give out= another folder"):
        linear_probe.main([f"train={tmp_path}/b/data/train", *words])
    assert linear_probe.main([f"train={tmp_path}/b/data/train", f"out={tmp_path}/transfer/data", *words]) == 0


def test_a_warm_up_as_long_as_the_training_is_refused(tmp_path, splits, encoder_folder):
    with pytest.raises(ConfigError, match="warmup_epochs=10 must be below epochs=5"):
        run(tmp_path, encoder_folder, f"train={splits['train']}", "mae.epochs=5")


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


def test_repeats_draw_labels_anew_and_report_on_the_same_images(tmp_path, splits, encoder_folder):
    words = [f"train={splits['train']}", "baselines=false", "repeats=3", "few_shot.shots=[1]"]
    results = run(tmp_path / "a", encoder_folder, *words, "train_samples=60")
    row = results["rows"]["pretrained"]
    assert (row["knn"]["draws"], row["few_shot"]["1"]["draws"], row["knn"]["labels"]) == (3, 9, 54) and results["reported_images"] == 6
    assert len(set(row["linear"]["by_run"][0])) > 1 or len({str(one) for one in row["linear"]["chosen_in_each"][0]}) > 1
    assert "draws of the labels" in row["linear"]["ci95_covers"]
    once = run(tmp_path / "b", encoder_folder, *words[:2], "few_shot.shots=[1]", f"test={splits['test']}", "train_samples=60")
    (found,) = [each for each in once["verdict"] if each["over"] == "majority class"]
    assert found["outcome"] in ("better", "not shown") and once["rows"]["pretrained"]["knn"]["draws"] == 1


def test_divisions_of_repeats_share_no_reported_image_and_have_as_many_labels():
    labels = np.arange(300) % 3
    config = ProbeConfig.model_validate({"train_samples": 90, "repeats": 4, "holdout_fraction": 0.2})
    found = probe_job.divide(labels, "abc", False, config)
    drawn = [found.samples[split.both] for split in found.splits]
    reported = set(found.samples[found.reported])
    assert len(found.splits) == 4 and len({len(ids) for ids in drawn}) == 1 and len(reported) == 18
    assert not any(reported & set(ids) for ids in drawn) and len({tuple(ids) for ids in drawn}) == 4
    alone = probe_job.divide(labels, "abc", False, config.model_copy(update={"repeats": 1}))
    assert np.array_equal(alone.samples[alone.splits[0].fit], found.samples[found.splits[0].fit])


class Constant(Leaks):
    """An encoder that says the same of every image."""

    def forward_features(self, images):
        tokens = torch.ones(len(images), 4, 3)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class Tells(Leaks):
    """Every layer shows the image's colours, and with them the class, as well as pixels do."""

    def forward_features(self, images):
        tokens = 40 * images.mean((2, 3))[:, None].expand(-1, 4, -1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class Noise(Leaks):
    """Random features of the image: another seed, other features."""

    def __init__(self, seed):
        super().__init__()
        self.register_buffer("mixing", torch.randn(12, 12, generator=torch.Generator().manual_seed(seed)))

    def forward_features(self, images):
        tokens = ((images.flatten(1)[:, :12] @ self.mixing) * 37).sin().view(-1, 4, 3)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


@pytest.mark.parametrize(
    ("net", "over_random", "over_nothing"),
    [(Tells(), "better", "better"), (Noise(99), "not shown", "not shown"), (Constant(), "not shown", "not shown")],
)
def test_the_verdict_on_encoders_with_known_answers(tmp_path, splits, monkeypatch, net, over_random, over_nothing, capsys):
    known = LoadedEncoder(
        net.eval(), None, 16, (0.5,) * 3, (0.5,) * 3, "known", "known", lambda seed: Noise(seed % 1000).eval(), ("known", {})
    )
    monkeypatch.setattr(probe_job, "read_encoder", lambda source: known)
    words = ["random_inits=3", "linear.last_layers=[]", "features.pixel_side=2", f"train={splits['train']}", f"test={splits['test']}"]
    found = {each["over"]: each for each in run(tmp_path, "known", *words)["verdict"]}
    assert found["random init"]["outcome"] == over_random and found["majority class"]["outcome"] == over_nothing
    assert found["random init"]["runs"] == [[1, 1], [3, 1]] and "seeds of the network" in found["random init"]["ci95_covers"]
    assert f"verdict   {found['random init']['words']}" in capsys.readouterr().out
