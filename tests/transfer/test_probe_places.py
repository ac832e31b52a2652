"""Where in an encoder a probe looks: every block, the last one, and the first block of the predictor that a run was trained with."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from mpp.base.errors import ConfigError
from mpp.base.rng import INIT, seed_of
from mpp.config.pretrain import PretrainConfig
from mpp.config.probe import ProbeConfig
from mpp.config.schema import load
from mpp.disk.files import sha256_of
from mpp.interop.read_encoder import read_encoder
from mpp.mains.probe_job import table_rows
from mpp.model.normalise import normalise
from mpp.model.rotary import grid_coordinates
from mpp.processes.world import World
from mpp.recipe.model import build_model
from mpp.train.commit import checkpoint_folder, write_commit
from mpp.transfer.features import PREDICTOR, Features, FeatureSpec, Layout, Variant
from mpp.transfer.grid import searching
from mpp.transfer.probes import linear
from mpp.transfer.probes.attentive import AttentiveProbe
from mpp.transfer.probes.contract import Answers, Measured, Train
from mpp.transfer.probes.few_shot import FewShotProbe
from mpp.transfer.probes.knn import KnnProbe
from mpp.transfer.probes.linear import LinearProbe
from mpp.transfer.probes.logistic import LogisticProbe
from mpp.transfer.protocol import answers_to, choose, report
from mpp.transfer.split import CHOOSE, Split, hold_out
from mpp.transfer.table import PRETRAINED, RANDOM, by_column, format_table, layers_table, remarks_on_table

ALONE = World(0, 1, 1, torch.device("cpu"))
MEAN, STD = (0.1, 0.4, 0.7), (0.3, 0.2, 0.6)
MODEL = "model={arch: vit_tiny_patch16_224, image_size: 16, patch_size: 4, width: 12, depth: 3, heads: 3, class_tokens: 2}"


def run_of(folder, **decoder):
    """A run of one commit whose decoder is a cross-attention predictor; its model."""
    section = {"depth": 2, "width": 16, "heads": 2} | decoder
    words = ", ".join(f"{key}: {value}" for key, value in section.items())
    given = ["data.shards=s", MODEL, "corruption={name: drop}", f"decoder={{name: cross_attention, {words}}}"]
    config = load(PretrainConfig, None, [*given, f"data.mean={list(MEAN)}", f"data.std={list(STD)}", "seed=3"])
    model = build_model(config).eval()
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
    step = checkpoint_folder(folder, 1)
    step.mkdir(parents=True)
    save_file(
        {f"weight/{name}": value.detach().contiguous() for name, value in model.named_parameters()}, str(step / "rank00000.safetensors")
    )
    facts = {
        "rank00000.safetensors": {
            "bytes": (step / "rank00000.safetensors").stat().st_size,
            "sha256": sha256_of(step / "rank00000.safetensors"),
        }
    }
    record = {"step": 1, "samples_seen": 4096, "files": facts, "config": config.model_dump(mode="json"), "manifests": {"data": "1"}}
    write_commit(step, record)
    return model


def rows_of(folder, *words):
    config = load(ProbeConfig, None, [f"encoder={folder}", "train=x", "random_inits=2", *words])
    return table_rows(config, read_encoder(folder, quiet=True), {}, ALONE)


def images(side=16):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, side, side), dtype=np.uint8))


@pytest.mark.parametrize(("memory", "position"), [("last", "rotary"), ("blocks", "sincos2d"), ("last", "learned")])
def test_the_predictors_feature_is_the_mean_of_its_first_block_at_all_places_when_all_are_seen(tmp_path, memory, position):
    """By the pretraining model itself: a decoder of one block without its head predicts just that."""
    model = run_of(tmp_path / "run", depth=1, memory=memory, position=position)
    row = rows_of(tmp_path / "run")[PRETRAINED]
    found = row.extractor(images())[:, row.extractor.layout.columns(PREDICTOR)]
    with torch.no_grad():
        embeddings = model.encoder.embed(normalise(images(), MEAN, STD))
        tokens = model.encoder.blocks(embeddings) if memory == "blocks" else model.encoder(embeddings)
        model.decoder.head = torch.nn.Identity()
        wanted = model.decoder(tokens, None, torch.arange(16).expand(4, -1)).mean(1)
    assert found.shape == (4, 16) and row.extractor.layout.width == 4 * 2 * 12 + 16
    assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    alone = rows_of(tmp_path / "run", "linear.curve=false", "linear.last_layers=[]", "knn.curve=false")[
        PRETRAINED
    ]  # what nobody asks for is not there
    assert alone.extractor.spec.predictor is None and alone.extractor.layout.width == 12


def test_of_several_blocks_the_first_alone_counts_and_other_sizes_have_other_places(tmp_path):
    model = run_of(tmp_path / "run", position="rotary")
    row = rows_of(tmp_path / "run")[PRETRAINED]
    del model.decoder.blocks[1:]
    model.decoder.head = torch.nn.Identity()
    with torch.no_grad():
        wanted = model.decoder(
            model.encoder(model.encoder.embed(normalise(images(), MEAN, STD))), None, torch.arange(16).expand(4, -1)
        ).mean(1)
    assert_close(row.extractor(images())[:, row.extractor.layout.columns(PREDICTOR)], wanted, rtol=1e-4, atol=1e-5)
    larger = rows_of(tmp_path / "run", "features.resolution=24")[PRETRAINED].extractor
    assert torch.equal(larger.backbone.predictor.turned.patches, grid_coordinates((6, 6)))
    assert larger(images(24)).isfinite().all()
    assert row.backbone.predictor.grid == (4, 4)  # which is left as it was


@pytest.mark.parametrize("position", ["learned", "sincos2d"])
def test_positions_of_the_predictor_are_resampled_for_another_size(tmp_path, position):
    model = run_of(tmp_path / "run", position=position)
    moved = model.decoder.at_grid((8, 4))
    there, before = (net.pos_embed.detach().unflatten(1, grid) for net, grid in ((moved, (8, 4)), (model.decoder, (4, 4))))
    assert_close(there.mean((1, 2)), before.mean((1, 2)), atol=0.05, rtol=0)
    assert not torch.equal(there[:, :4], before) and model.decoder.pos_embed.shape[1] == 16
    assert len(list(moved.parameters())) == len(list(model.decoder.parameters()))


def test_the_predictor_of_a_random_row_is_as_a_run_with_its_seed_starts_and_each_has_a_key_of_its_own(tmp_path):
    run_of(tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    loaded = read_encoder(tmp_path / "run", quiet=True)
    fresh = loaded.predictor.fresh(seed_of(0, INIT, 1))
    config = load(
        PretrainConfig,
        None,
        ["data.shards=s", MODEL, "corruption={name: drop}", "decoder={name: cross_attention, depth: 2, width: 16, heads: 2}"],
    )
    begun = build_model(config).decoder.state_dict()  # seed 0
    kept = rows[RANDOM].extractor.backbone.predictor.state_dict()
    assert begun.keys() == kept.keys() and all(torch.equal(begun[name], kept[name]) for name in begun)
    digests = [row.extractor.spec.predictor for row in rows.values() if row.encoder is not None]
    assert len(digests) == len(set(digests)) == 3 and digests[0] == fresh.digest and digests[2] == loaded.predictor.digest
    assert rows[PRETRAINED].extractor.spec.as_dict()["predictor"] == digests[2]  # of which the key of a table is a hash


def test_an_encoder_without_one_has_no_such_feature_and_asking_for_it_is_refused(tmp_path, encoder_folder):
    run_of(tmp_path / "run")
    own = rows_of(tmp_path / "run", "features.pooling=predictor")
    assert {row.own for row in own.values() if row.encoder is not None} == {PREDICTOR}
    plain = rows_of(encoder_folder)[PRETRAINED].extractor
    assert "predictor" not in plain.spec.as_dict() and PREDICTOR not in plain.layout.whole  # tables of before are still found
    with pytest.raises(ConfigError, match="comes without one; give the run itself"):
        rows_of(encoder_folder, "features.pooling=predictor")
    for words in ("augmented=[mae]", "augmented=[attentive] attentive.curve=false"):
        with pytest.raises(ConfigError, match="is no layer's"):
            rows_of(tmp_path / "run", "features.pooling=predictor", *words.split())


# ------------------------------------------------------------------------------------------------------------------ the best and the last

SPEC = FeatureSpec("tiny", (0, 1, 2), ("mean",), 16, 1.0, (0.5,) * 3, (0.5,) * 3, "fp32", predictor="p")
LAYERS = {("mean", layer): 4 for layer in range(3)}
LAYOUT = Layout({place: 4 * i for i, place in enumerate(LAYERS)}, LAYERS, {PREDICTOR: (12, 5)})
OFFERED = SimpleNamespace(first=0, depth=2, class_tokens=0, predictor="a decoder")
LAST = Variant((2,), "mean")
PROBES = [
    LinearProbe(epochs=8, batch=64, learning_rates=(0.01, 0.1), last_layers=(1,)), KnnProbe(k=(3, 10), temperatures=(0.07, 0.5)),
    LogisticProbe(strengths=(0.1, 1.0)), FewShotProbe(shots=(5,), trials=2, l2=(0.1, 10.0)),
]  # fmt: skip


def features_of(labels, seed, telling: dict[int, float]) -> Features:
    """Noise, in which from column `first` on four columns tell the class, so loudly."""
    values = np.random.default_rng(seed).normal(size=(len(labels), 17)).astype(np.float32)
    for first, loudness in telling.items():
        values[:, first : first + 3] += loudness * np.eye(3, dtype=np.float32)[labels]
    return Features(SPEC, LAYOUT, torch.from_numpy(values))


def measured(telling, probes=PROBES, own=LAST, truth=None, widen=False):
    labels, asked = np.arange(300) % 3, np.arange(90) % 3
    train = Train(
        features_of(labels, 1, telling), own, labels, "abc", Split(*hold_out(labels, 0.3, 0, CHOOSE)), 0, torch.device("cpu"), widen=widen
    )
    said = answers_to(choose(probes, train, OFFERED), Measured(features_of(asked, 2, telling), np.arange(90)))
    return report([[said]], torch.from_numpy(asked if truth is None else truth), 3)


def test_the_best_place_and_the_last_block_have_a_figure_each_and_the_last_is_measured_as_if_alone():
    found, answers = measured({4: 3.0, 8: 0.8})  # layer 1 loudly, layer 2 softly
    for key, alone in (
        ("linear", LinearProbe(epochs=8, batch=64, learning_rates=(0.01, 0.1), curve=False, last_layers=())),
        ("knn", PROBES[1]),
    ):
        figure, last = found[key], found[key]["last"]
        assert figure["place"] == figure["chosen"]["features"] == "mean of layer 1"
        assert last["place"] == last["chosen"]["features"] == "mean of layer 2"
        assert figure["accuracy"] > last["accuracy"] + 0.1 and figure["holdout_score"] > last["holdout_score"]
        if key == "knn":
            alone = alone.model_copy(update={"curve": False})
        by_itself, said = measured({4: 3.0, 8: 0.8}, [alone])
        assert by_itself[key]["accuracy"] == last["accuracy"] and by_itself[key]["chosen"] == last["chosen"]
        assert torch.equal(said[key].predicted, answers[f"{key}/last"].predicted)
        _, said = measured({4: 3.0, 8: 0.8}, [alone], own=Variant((1,), "mean"))
        assert torch.equal(said[key].predicted, answers[key].predicted)
        scores = {(one["layer"], one["pooling"]): one["holdout_score"] for one in figure["by_layer"]}
        assert scores.keys() == {(0, "mean"), (1, "mean"), (2, "mean"), (None, "predictor")}
        assert max(scores, key=scores.get) == (1, "mean") and scores[2, "mean"] == last["holdout_score"]


def test_the_last_block_is_the_best_place_too_where_rates_that_were_widened_for_it_alone_made_it_so(monkeypatch):
    """At the given rates it is level with another place, which is taken, as its rate lies inside the grid; so only then they are widened."""
    tried = {("mean of layer 1", 0.1): 0.5, ("mean of layer 2", 0.3): 0.5, ("mean of layer 2", 0.6): 0.7}

    def by_table(axes, _, widen):
        def evaluate(values):
            return np.array([[tried.get((str(variant), round(rate, 3)), 0.1) for rate in values[1]] for variant in values[0]])
            yield

        return searching(axes, evaluate, widen)

    monkeypatch.setattr(linear, "searching", by_table)
    found, answers = measured({}, [LinearProbe(epochs=1, learning_rates=(0.01, 0.1, 0.3), last_layers=())], widen=True)
    for figure in (found["linear"], found["linear"]["last"]):
        assert (figure["place"], figure["holdout_score"]) == ("mean of layer 2", 0.7) and figure["chosen"][
            "learning_rate"
        ] == pytest.approx(0.6)
    assert torch.equal(answers["linear"].predicted, answers["linear/last"].predicted)
    tried["mean of layer 2", 0.6] = 0.5
    found, _ = measured({}, [LinearProbe(epochs=1, learning_rates=(0.01, 0.1, 0.3), last_layers=())], widen=True)
    assert (found["linear"]["place"], found["linear"]["last"]["place"]) == ("mean of layer 1", "mean of layer 2")


def test_labels_of_test_touch_neither_the_best_nor_the_last_place():
    honest, _ = measured({4: 0.6, 8: 0.6, 12: 0.6})
    permuted, _ = measured({4: 0.6, 8: 0.6, 12: 0.6}, truth=np.random.default_rng(0).permutation(np.arange(90) % 3))
    for key in ("linear", "knn"):
        for ours, theirs in ((honest[key], permuted[key]), (honest[key]["last"], permuted[key]["last"])):
            assert ours["accuracy"] > theirs["accuracy"]
            assert all(ours[name] == theirs[name] for name in ("chosen", "place", "holdout_score"))
        assert honest[key]["by_layer"] == permuted[key]["by_layer"]


def test_the_predictors_block_is_found_where_it_tells_and_every_probe_can_be_pointed_at_it():
    found, _ = measured({12: 3.0})
    assert found["linear"]["place"] == found["knn"]["place"] == str(PREDICTOR)
    assert found["logistic"]["accuracy"] < 0.55 and found["few_shot"]["5"]["accuracy"] < 0.55
    assert found["knn"]["last"]["accuracy"] < 0.55 < 0.9 < found["knn"]["accuracy"]
    pointed, _ = measured({12: 3.0}, own=PREDICTOR)
    assert min(pointed["logistic"]["accuracy"], pointed["few_shot"]["5"]["accuracy"]) > 0.8


def test_the_attentive_probe_chooses_its_layer_on_the_hold_out_and_reads_the_last_beside_it():
    labels = np.arange(48) % 3

    class Views:
        """Layer 1 of two shows the class, the last is noise."""

        prefix, class_tokens, rank, processes = 1, 1, 0, 1
        width_of = staticmethod(lambda layer: 6)

        def tokens(self, rows, layers):
            drawn = {layer: torch.randn(48, 5, 6, generator=torch.Generator().manual_seed(layer)) for layer in layers}
            if 1 in drawn:
                drawn[1][:, 3, :3] += 5 * torch.nn.functional.one_hot(torch.from_numpy(labels), 3)
            return {layer: found[rows] for layer, found in drawn.items()}

        def augmented(self, epoch, parts, layers, crop_scale):
            return [(self.tokens(rows, layers), rows) for rows in parts]

        def answers(self, predict, layers, rows, crop=None):
            return [Answers(*pair) for pair in zip(*predict(self.tokens(rows, layers)), strict=True)]

    split = Split(np.arange(24), np.arange(24, 36))
    train = Train(features_of(labels, 1, {}), LAST, labels, "abc", split, 0, torch.device("cpu"), views=Views())
    probe = AttentiveProbe(epochs=40, warmup_epochs=1, batch=8, learning_rates=(0.1, 0.3), weight_decay=0.0)
    said = answers_to(choose([probe], train, OFFERED), Measured(train.features, np.arange(36, 48), Views()))
    found, _ = report([[said]], torch.from_numpy(labels[36:]), 3)
    figure, last = found["attentive"], found["attentive"]["last"]
    assert figure["place"] == "layer 1" and "layer 1," in figure["chosen"]["head"] and figure["accuracy"] > 0.8
    assert last["place"] == "layer 2" and "layer 2," in last["chosen"]["head"] and last["accuracy"] < figure["accuracy"]
    assert [one["layer"] for one in figure["by_layer"]] == [0, 1, 2] and figure["by_layer"][1]["holdout_score"] == figure["holdout_score"]
    alone = choose([probe.model_copy(update={"curve": False})], train, OFFERED).fitted["attentive"]
    assert {head["head"].split(",")[0] for head in alone.about["grid"]} == {"attention over layer 2"}


# ------------------------------------------------------------------------------------------------------------------ what is shown

ONE = {"accuracy": 0.4, "ci95": [0.39, 0.41], "labels": 30, "draws": 1, "per_class": {"accuracy": [0.4], "images": [10]}}


def test_the_last_block_has_a_column_and_places_are_said():
    both = ONE | {"place": "mean of layer 2", "last": ONE | {"accuracy": 0.3, "ci95": None, "place": "cls of layer 3"}}
    rows = {"raw pixels": {"linear": ONE}, "pretrained": {"linear": both, "knn": ONE}}
    assert list(by_column(rows["pretrained"])) == ["linear", "linear/last", "knn"]
    heading, _, _, pixels, ours = format_table(rows).splitlines()
    assert heading.split() == ["top-1,", "%", "linear", "linear,", "last", "k-NN"]
    assert pixels.split()[2:] == ["40.00", "±1.00", "-", "-"] and ours.split()[1:] == ["40.00", "±1.00", "30.00", "40.00", "±1.00"]
    assert "place     pretrained: linear: mean of layer 2; linear, last: cls of layer 3" in remarks_on_table(rows)


def test_scores_by_block_are_the_mean_over_seeds_and_stand_side_by_side():
    scores = lambda *by: [{"layer": layer, "pooling": part, "holdout_score": score} for layer, part, score in by]
    about = lambda shift, place: {
        "holdout_score": 0.5,
        "chosen": {},
        "place": place,
        "by_layer": scores((0, "mean", 0.1 + shift), (1, "mean", 0.2 + shift)),
    }
    answers = Answers(torch.zeros(6, dtype=torch.int64))
    found, _ = report(
        [[{"linear": (about(0.0, "a"), answers)}], [{"linear": (about(0.2, "b"), answers)}]], torch.zeros(6, dtype=torch.int64), 2
    )
    assert [one["holdout_score"] for one in found["linear"]["by_layer"]] == pytest.approx([0.2, 0.3]) and found["linear"][
        "place"
    ] == "a or b"
    ours = {
        "linear": {
            "by_layer": scores(
                (0, "mean", 0.5),
                (10, "mean", 0.75),
                (2, "mean", 0.25),
                (0, "cls", 0.125),
                (2, "cls", 0.0),
                (2, "both", 0.5),
                (None, "predictor", 1.0),
            )
        },
        "attentive": {"by_layer": scores((0, "attentive", 0.875), (1, "attentive", 0.0))},
    }
    assert [line.split() for line in layers_table({"random init": found, "pretrained": ours}).splitlines()] == [
        ["hold-out,", "%", "random", "init", "pretrained"], ["linear", "linear", "attentive"], ["block", "mean", "mean", "cls", "both"],
        ["0", "20.00", "50.00", "12.50", "-", "87.50"], ["1", "30.00", "-", "-", "-", "0.00"], ["2", "-", "25.00", "0.00", "50.00", "-"],
        ["10", "-", "75.00", "-", "-", "-"], ["predictor", "-", "100.00", "-", "-", "-"],
    ]  # fmt: skip
    assert layers_table({"raw pixels": {"linear": ONE}, "pretrained": {"knn": {"by_layer": scores((3, "mean", 0.5))}}}) == ""


def test_a_table_that_is_too_wide_goes_on_below_with_its_rows():
    shots = {str(count): ONE for count in range(1, 16)}
    lines = format_table({"raw pixels": {"few_shot": shots}, "pretrained": {"few_shot": shots}}).splitlines()
    assert max(map(len, lines)) <= 150 and [line.split()[0] for line in lines] == ["top-1,", "labels", "draws", "raw", "pretrained"] * 2
    assert " ".join(lines[0::5]).count("-shot") == 15
