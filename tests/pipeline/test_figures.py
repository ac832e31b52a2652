"""What runs write down is what monitor/figures.py says, in both directions."""

import json
from fnmatch import fnmatchcase

import pytest

from mpp.monitor.figures import FIGURES
from tests.pipeline.conftest import finish, start, succeed
from tests.pipeline.finetune_runs import write_images
from tests.pipeline.test_finetune import TINY as TINY_FINETUNE

LONG = [
    "optim.total_samples=1200",
    "log.every_steps=50",
    "log.holdout_every_steps=50",
    "log.pictures=0",
    "system.matrix_tflops=0.25",
]  # 100 steps
IF_READABLE = {"speed/energy_joules"}  # tests/monitor/test_energy.py
MOVING = ["target={name: clusters, clusters: 8, ema_start: 0.5, ema_end: 0.9}", "evaluate.every_steps=50", "optim.final_weight_decay=0.4"]


def names(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all({"samples", "step"} <= row.keys() for row in rows)
    return {name for row in rows for name in row} - {"samples", "step"}


@pytest.fixture(scope="module")
def written(shards, make_shards, tmp_path_factory):
    """program -> the names that three runs write: of a target with baselines on two sources, of one that moves and learns, on two processes, and of fine-tuning."""
    place = tmp_path_factory.mktemp("figures")
    succeed(place / "fixed", f"[{shards}, {make_shards(place / 'other' / 'train', [9])}]", "log.pictures=0", "evaluate.images=0")
    succeed(place / "moving", shards, *LONG, *MOVING, world=2)
    test = write_images(place / "test", {"dark": 6, "light": 6}, seed=3)
    words = [
        *TINY_FINETUNE,
        "optim.epochs=34",
        "log.every_steps=50",
        "log.holdout_every_epochs=20",
        "system.matrix_tflops=0.25",
        f"test={test}",
    ]
    tuned = finish(start([f"encoder={place / 'fixed'}", f"train={shards}", f"run_dir={place / 'tuned'}", *words], 2, ["mpp/finetune.py"]))
    assert tuned.status == [0, 0], tuned.err[-3000:]
    return {"pretraining": names(place / "fixed") | names(place / "moving"), "fine-tuning": names(place / "tuned")}


@pytest.mark.slow
@pytest.mark.parametrize("program", ["pretraining", "fine-tuning"])
def test_a_run_writes_the_figures_of_the_table_and_no_others(written, program):
    table = {name for name, figure in FIGURES.items() if program in figure.by}
    found = {name: next((entry for entry in table if fnmatchcase(name, entry)), None) for name in written[program]}
    assert not (unknown := [name for name, entry in found.items() if entry is None]), unknown
    assert set(found.values()) | IF_READABLE == table
