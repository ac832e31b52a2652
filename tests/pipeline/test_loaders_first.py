"""Loader processes are forked off before a training program has collectives, whichever it is, and none after that."""

import json

import pytest
import torch

from tests.pipeline.conftest import TINY as PRETRAINING
from tests.pipeline.conftest import tensors
from tests.pipeline.test_finetune import TINY as FINETUNING
from tests.pipeline.test_finetune import pretrained  # noqa: F401  (a fixture)
from tests.pipeline.test_no_waiting import ran

# What this process does, in order: it forks, or joins the others.
NOTING = """
import json, os, sys
from pathlib import Path
import torch.distributed as dist
out, program = sys.argv[1:3]
events = []
os.register_at_fork(before=lambda: events.append("forks"))
join = dist.init_process_group
def noted(*given, **named):
    events.append("joins")
    return join(*given, **named)
dist.init_process_group = noted
if program == "pretrain":
    from mpp.pretrain import main
else:
    from mpp.finetune import main
try:
    status = main(sys.argv[3:])
finally:
    Path(out).write_text(json.dumps(events))
sys.exit(status)
"""
TUNED = [*FINETUNING, "system.workers=1", "optim.epochs=1", "optim.warmup_epochs=0"]


@pytest.fixture
def tune(pretrained, shards, images, tmp_path):  # noqa: F811
    """tune(run, words): what each process of that fine-tuning did, in order; all did the same."""

    def tuned(run: str, *words: str, world: int = 1) -> list[str]:
        words = ("finetune", *TUNED, f"encoder={pretrained}", f"train={shards}", f"test={images}", f"run_dir={tmp_path / run}", *words)
        done, events = ran(NOTING, list(words), tmp_path / "events", world)
        assert done.status == [0] * world, done.err[-3000:]
        assert all(each == events[0] for each in events)
        return events[0]

    return tuned


def test_pretraining_forks_before_it_joins(shards, tmp_path):
    words = ["pretrain", *PRETRAINING, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", "system.workers=1"]
    done, events = ran(NOTING, words, tmp_path / "events", world=2)
    assert done.status == [0, 0], done.err[-3000:]
    assert events == [["forks", "joins"]] * 2


@pytest.mark.long
def test_fine_tuning_forks_before_it_joins_for_all_repeats_and_all_that_is_measured(tune):
    assert tune("series", "repeats=2", world=2) == [
        "forks",
        "forks",
        "joins",
    ]  # who reads what is trained on, and who reads hold-out and test


@pytest.mark.long
def test_so_does_one_that_goes_on_and_its_repeats_have_the_bits_of_one_process(tune, tmp_path):
    assert tune("one") == ["forks", "forks", "joins"]
    assert tune("one") == []  # it has finished
    assert tune("one", "optim.epochs=2") == ["forks", "forks", "joins"]
    tune("grown", "repeats=2")
    assert tune("grown", "repeats=3") == ["forks", "forks", "joins"]
    assert tune("plain", "repeats=3", "system.workers=0") == ["joins"]
    for number in range(3):
        here, there = (tmp_path / run / f"repeat-{number}" for run in ("grown", "plain"))
        theirs = tensors(there, 3)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in tensors(here, 3).items())
        found = [json.loads((run / "measured.json").read_text()) for run in (here, there)]
        assert found[0]["rows"] == found[1]["rows"] and found[0]["holdout"] == found[1]["holdout"]
