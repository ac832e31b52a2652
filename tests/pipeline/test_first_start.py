"""The first start on a machine costs what every later one does: nothing is compiled that no step calls."""

import pytest

from tests.pipeline.conftest import succeed


@pytest.mark.parametrize("world, stage", [(1, 0), (2, 3), *(pytest.param(2, stage, marks=pytest.mark.long) for stage in (0, 1, 2))])
def test_nothing_is_compiled_whatever_the_processes_and_the_stage(world, stage, shards, tmp_path, monkeypatch):
    kept = tmp_path / "extensions"
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(kept))
    words = ["optim={total_samples: 24, warmup_samples: 0}", "log.pictures=0", f"system.zero_stage={stage}"]
    succeed(tmp_path / "run", shards, *words, world=world)
    assert not kept.exists()
