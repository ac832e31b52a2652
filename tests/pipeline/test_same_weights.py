"""Weights that each process reads for itself: under one path there may be others on another host, or from a run that has committed meanwhile."""

import pytest

from mpp.config.sections import ModelConfig
from mpp.interop.encoder_folder import write_encoder
from mpp.model.encoder import build_encoder
from tests.forks import Forked
from tests.pipeline.conftest import ROOT, TINY, environment, finish, free_port

FROZEN = "target={name: frozen, encoder: weights}"
SHORT = [*TINY, "optim.total_samples=12", "optim.warmup_samples=0", "evaluate.images=0"]  # should they not be refused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "words", "key"),
    [
        ("pretrain", [*SHORT, "init_from=weights"], "init_from"),
        ("pretrain", [*SHORT, FROZEN], "target.encoder"),
        ("finetune", ["encoder=weights", "data.global_batch=4", "optim={steps: 1, warmup_steps: 0}"], "encoder"),
        ("linear_probe", ["encoder=weights", "rank_only=true"], "encoder"),
        ("linear_probe", ["encoder=first", "beside=[weights]", "rank_only=true"], "beside.weights"),
    ],
)
def test_ranks_that_read_other_weights_are_named_before_anything_is_computed(shards, tmp_path, program, words, key):
    model = ModelConfig(arch="vit_tiny_patch16_224", image_size=16, patch_size=4, width=32, depth=2, heads=2)
    for rank in (0, 1):
        for name, seed in (("weights", rank), ("first", 7)):
            write_encoder(tmp_path / str(rank) / name, build_encoder(model, seed).vit.state_dict(), model, (0.5,) * 3, (0.5,) * 3, "tiny")
    where = ["data.shards=", "run_dir="] if program == "pretrain" else ["train=", "run_dir=" if program == "finetune" else "out="]
    given = [f"{where[0]}{shards}", f"{where[1]}{tmp_path / 'out'}"]
    port = free_port()
    ranks = [
        Forked([str(ROOT / f"mpp/{program}.py"), *words, *given], cwd=tmp_path / str(rank), env=environment(rank, 2, port))
        for rank in (0, 1)
    ]
    done = finish(ranks)
    assert done.status == [2, 2], done.err
    (line,) = done.error_lines
    assert line.startswith("error: the processes of this job are not alike: rank 1 (host ") and f" has weights.{key}=" in line
    assert not list((tmp_path / "out").rglob("*"))
