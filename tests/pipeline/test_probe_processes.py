"""Probing by several processes: every image by one of them, the same tables and figures as by one, and no process left waiting."""

import json
import shutil

import numpy as np
import pytest

from mpp.config.sections import ModelConfig
from mpp.data.shards import ShardSet
from mpp.interop.encoder_folder import write_encoder
from mpp.model.encoder import build_encoder
from mpp.transfer.probes.linear import cost
from tests.pipeline.conftest import ROOT, finish, start

QUICK = [
    "features.workers=0", "features.batch=16", "linear.epochs=2", "linear.learning_rates=[0.1]", "logistic.strengths=[1]", "knn.k=[3]",
    "few_shot.shots=[1]", "augmented=[mae]", "mae.epochs=2", "mae.warmup_epochs=1", "mae.batch=40",
]  # fmt: skip

# Every linear head that this process trains: of which features, with which seed, on how many images, on which columns, at which rate.
NOTING = """
import json, os
from pathlib import Path
import mpp.transfer.probes.linear as linear
real, heads = linear.train_heads, []
def noting(values, rows, labels, classes, blocks, **more):
    of = [float(values[0].sum()), more["seed"], len(rows)]
    heads.extend([*of, block.columns.tolist(), rate] for block in blocks for rate in block.learning_rates)
    return real(values, rows, labels, classes, blocks, **more)
linear.train_heads = noting
from mpp.base.errors import run_program
from mpp.linear_probe import main
def noted(argv=None):
    status = main(argv)
    Path(os.environ["NOTED"] + os.environ["RANK"]).write_text(json.dumps(heads))
    return status
run_program(noted)
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    model = ModelConfig(arch="vit_tiny_patch16_224", image_size=16, patch_size=4, width=32, depth=2, heads=2)
    write_encoder(folder, build_encoder(model, 5).vit.state_dict(), model, (0.5,) * 3, (0.5,) * 3, "tiny")
    return folder


def probe(out, encoder, train, *words: str, world: int, program=("mpp/linear_probe.py",)):
    return finish(start([f"encoder={encoder}", f"train={train}", f"out={out}", *QUICK, *words], world, list(program)))


def test_two_processes_make_the_same_table_as_one(tmp_path, shards, encoder):
    results, tables = {}, {}
    for world in (1, 2):
        out = tmp_path / str(world)
        done = probe(out, encoder, shards, world=world)
        assert done.status == [0] * world, done.err[-3000:]
        assert done.out.count("48 of 48 images, 0 repeated") == 5 and f"by {world} process" in done.out
        results[world] = json.loads((out / "results.json").read_text())
        tables[world] = {
            json.loads((folder / "features.json").read_text())["spec"]["encoder"]: np.load(folder / "features.npy")
            for folder in (out / "features").glob("*/")
        }
    for encoder_digest, values in tables[1].items():
        np.testing.assert_allclose(tables[2][encoder_digest], values, rtol=1e-4, atol=1e-5)
    for name, row in list(results[1]["rows"].items())[1:]:
        for figure in ("linear", "logistic", "knn", *(["mae"] if name != "raw pixels" else [])):
            assert results[2]["rows"][name][figure]["accuracy"] == pytest.approx(row[figure]["accuracy"], abs=1e-9)
    assert results[2]["processes"] == 2


def test_an_image_that_one_process_cannot_read_ends_all_with_one_line(tmp_path, shards, encoder):
    shutil.copytree(shards, tmp_path / "train")
    index = ShardSet.open(tmp_path / "train").index
    with (tmp_path / "train" / "000004.tar").open("r+b") as tar:  # of the second process's half
        tar.seek(int(index[45]["offset"]) + 60)
        tar.write(b"\x00\x01\x02\x03")
    done = probe(tmp_path / "out", encoder, tmp_path / "train", world=2)
    assert done.status == [2, 2] and len(done.error_lines) == 1, done.err
    assert "no image out" in done.error_lines[0] and "Traceback" not in done.err
    assert not list((tmp_path / "out" / "features").glob("*/features.json"))


def test_probes_dealt_out_to_processes_give_the_same_figures_to_the_digit(tmp_path, shards, encoder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as sums of one thread and of two differ in their last digits
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = [f"features.cache={tmp_path / 'cache'}", "repeats=2", "augmented=[]", "random_inits=1", "linear.learning_rates=[0.1,0.3]"]
    stored = probe(tmp_path / "stored", encoder, shards, *words, "extract_only=true", world=2)
    assert stored.status == [0, 0], stored.err[-3000:]
    assert "by 2 processes" in stored.out and not (tmp_path / "stored" / "results.json").exists()
    rows, lines, heads = {}, {}, {}
    for world in (1, 3):
        monkeypatch.setenv("NOTED", str(tmp_path / f"heads.{world}."))
        done = probe(tmp_path / str(world), encoder, shards, *words, world=world, program=("-c", NOTING))
        assert done.status == [0] * world, done.err[-3000:]
        assert done.out.count("from the cache") == 3
        found = json.loads((tmp_path / str(world) / "results.json").read_text())["rows"]
        for row in found.values():
            assert set(row.pop("seconds", {})) in ({"linear", "logistic", "knn", "few_shot"}, set())
        rows[world] = found
        lines[world] = [line.partition(" (seconds")[0] for line in done.out.splitlines() if line.startswith("chosen ")]
        assert len(lines[world]) == 6
        heads[world] = [json.loads((tmp_path / f"heads.{world}.{rank}").read_text()) for rank in range(world)]
    assert rows[3] == rows[1]
    assert lines[3] == lines[1]
    answers = [(tmp_path / world / "predictions.safetensors").read_bytes() for world in "13"]
    assert answers[0] == answers[1]
    # None was trained twice, and each process had about its third, up to one block of raw pixels, which are wide.
    (alone,), shares = heads[1], heads[3]
    assert sorted(head for share in shares for head in share) == sorted(alone) and len({str(head) for head in alone}) == len(alone)
    weigh = lambda heads: sum(cost(len(columns), 1) for *_, columns, _ in heads)
    assert max(map(weigh, shares)) < 0.5 * weigh(alone)
