"""The board of whole runs: every chart has its curves, norms by depth make up the whole, hyper-parameters and features are there."""

import json
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.monitor.reference import Band
from mpp.train.run_folder import identity_of
from tests.pipeline.conftest import TINY, pretrain, succeed

LOOKS = ["evaluate={every_steps: 4, images: 64}", "log={every_steps: 2, holdout_every_steps: 4, pictures: 0}", "system.matrix_tflops=0.25"]
TEACHER = ["target={name: features, blocks: 1}", "optim.final_weight_decay=0.2"]
ELSEWHERE = {"speed/tflops", "speed/features_share", "holdout/skill_error"}  # beside what is drawn


def events(run_dir):
    found = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def layout(found):
    told = layout_pb2.Layout()
    (event,) = found.Tensors("custom_scalars__config__")
    told.ParseFromString(event.tensor_proto.string_val[0])
    return {chart.title: chart for category in told.category for chart in category.chart}


def rows(run_dir, name):
    return [row for row in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()) if name in row]


@pytest.mark.parametrize("words", [[], TEACHER], ids=["colours", "teacher"])
def test_every_chart_has_curves_and_every_curve_its_chart(shards, tmp_path, words):
    succeed(tmp_path / "run", shards, *LOOKS, *words, "optim.total_samples=1200", "optim.warmup_samples=0", "optim.clip_norm=1e-3")
    found = events(tmp_path / "run")
    tags, charts = set(found.Tags()["scalars"]), layout(found)
    drawn = set()
    for title, chart in charts.items():
        matching = {tag for pattern in chart.multiline.tag for tag in tags if re.search(pattern, tag)}
        if not title.startswith(("attention", "energy")):
            assert matching, title
        drawn |= matching
    assert tags - drawn <= ELSEWHERE, tags - drawn
    assert ("decay of the teacher's average" in charts) == bool(words) == ("weight decay" in charts)
    for row in rows(tmp_path / "run", "norm/gradient/block_00"):
        parts = [value for name, value in row.items() if name.startswith("norm/gradient/")]
        assert sum(part**2 for part in parts) ** 0.5 == pytest.approx(row["optim/gradient_norm"], rel=1e-4)
        assert {name.replace("gradient", "weight") for name in row if name.startswith("norm/gradient/")} <= row.keys()
    assert len(rows(tmp_path / "run", "norm/gradient/block_00")) == len(rows(tmp_path / "run", "train/loss"))


@pytest.mark.parametrize("stage", [2, 3])
def test_beyond_zero_0_norms_are_told_of_what_is_whole(shards, tmp_path, stage):
    succeed(tmp_path / "run", shards, "log.pictures=0", f"system.zero_stage={stage}")
    assert not rows(tmp_path / "run", "norm/gradient/block_00")
    assert bool(rows(tmp_path / "run", "norm/weight/block_00")) == (stage == 2)


def test_what_changes_results_is_among_the_hyper_parameters_and_features_are_projected(shards, tmp_path):
    succeed(tmp_path / "run", shards, *LOOKS, "optim.base_lr=0.007")
    metadata = events(tmp_path / "run").SummaryMetadata("_hparams_/session_start_info")
    start = HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info.hparams
    assert start["optim.base_lr"].number_value == 0.007 and start["mask.name"].string_value == "random"
    assert "system.workers" not in start
    ended = events(tmp_path / "run").SummaryMetadata("_hparams_/session_end_info")
    assert HParamsPluginData.FromString(ended.plugin_data.content).session_end_info.status == 1  # success
    place = tmp_path / "run" / "tensorboard" / "projector"
    features, words = ((place / name).read_text().splitlines() for name in ("features.tsv", "words.tsv"))
    assert len(features) == len(words) > 0 and (tmp_path / "run" / "tensorboard" / "projector_config.pbtxt").exists()


WITH_REFERENCES = """
from functools import partial
from pathlib import Path
import mpp.train.run as run
from mpp.base.errors import run_program
from mpp.pretrain import main
run.find_reference = partial(run.find_reference, folder=Path({folder!r}))
run_program(main)
"""


def test_a_run_whose_recipe_has_a_reference_is_drawn_beside_it_and_another_is_not(shards, tmp_path):
    words = [*TINY, f"data.shards={shards}", f"run_dir={tmp_path / 'first'}", "log.pictures=0"]
    succeed(tmp_path / "first", shards, "log.pictures=0")
    commit = json.loads((tmp_path / "first" / "checkpoints" / "000000008" / "COMMIT.json").read_text())
    bands = {"holdout/skill": Band((0.0, 1000.0), (-9.0, -1.0), (0.0, 0.0), (0.5, 1.0)).__dict__}
    known = {
        "identity": identity_of(load(PretrainConfig, None, words), commit["manifests"]),
        "about": "three seeds of noise",
        "bands": bands,
    }
    (tmp_path / "references").mkdir()
    (tmp_path / "references" / "noise.json").write_text(json.dumps(known))
    program = ["-c", WITH_REFERENCES.format(folder=str(tmp_path / "references"))]
    found = pretrain(tmp_path / "run", shards, "log.pictures=0", "seed=5", program=program)
    assert found.status == [0] and "beside the reference on the board: three seeds of noise" in found.out, found.err[-2000:]
    curves = events(tmp_path / "run")
    for name, value in (("low", lambda at: -9 + 8 * at / 1000), ("high", lambda at: 0.5 + at / 2000)):
        shown = curves.Scalars(f"reference/holdout/skill/{name}")
        assert [event.step for event in shown] == [event.step for event in curves.Scalars("holdout/skill")]
        assert [event.value for event in shown] == pytest.approx([value(event.step) for event in shown])
    (chart,) = (chart for title, chart in layout(curves).items() if "holdout/skill: this run" in title)
    (series,) = chart.margin.series
    assert (series.value, series.lower, series.upper) == ("holdout/skill", "reference/holdout/skill/low", "reference/holdout/skill/high")
    other = pretrain(tmp_path / "other", shards, "log.pictures=0", "mask.ratio=0.6", program=program)
    assert other.status == [0] and "reference" not in other.out
    assert not any(tag.startswith("reference/") for tag in events(tmp_path / "other").Tags()["scalars"])
