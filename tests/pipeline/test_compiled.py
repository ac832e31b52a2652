"""Runs that are really compiled, by Inductor's C++: the same losses and weights as without it, up to rounding, whatever a recipe draws or learns."""

import shutil

import pytest
import torch

from tests.pipeline.conftest import metrics, succeed, tensors

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs a C++ compiler (apt-get install g++)"),
]

DROPPED = "corruption={name: drop}"
RECIPES = {
    "mean colour": [],
    "MAE": [DROPPED, "mask.ratio=0.75", "target={name: pixels}", "decoder={name: transformer, depth: 1, width: 16, heads: 2}"],
    "data2vec": ["mask={name: block, min_patches: 2}", "target={name: features, blocks: 2, ema_samples: 30}"],
    "clusters": [
        DROPPED,
        "mask={name: inverse_block, predicted: 0.25}",
        "target={name: clusters, clusters: 10, ema_start: 0.5, ema_end: 0.8, ema_samples: 60}",
        "decoder={name: cross_attention, depth: 1, width: 16, heads: 2, position: rotary}",
    ],
    "rotation": ["mask={name: turn}", "corruption={name: rotate}", "target={name: rotation}", "decoder={name: pooled}"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_compiled_run_computes_what_an_uncompiled_one_does(recipe, shards, tmp_path):
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    succeed(plain, shards, *RECIPES[recipe], "model.drop_path=0")
    succeed(compiled, shards, *RECIPES[recipe], "model.drop_path=0", "system.compile=true")
    expected, found = metrics(plain), metrics(compiled)
    assert len(expected) >= 8 and expected.keys() == found.keys()
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=2e-3, abs=2e-3, nan_ok=True), step
    weights, others = tensors(plain, 8), tensors(compiled, 8)
    assert weights.keys() == others.keys()
    for name in weights:
        if name.startswith("weight/"):
            torch.testing.assert_close(others[name], weights[name], atol=1e-3, rtol=1e-2, msg=name)
    # Other kernels round otherwise: had nothing been compiled, all bits would be the same.
    assert any(not torch.equal(others[name], weights[name]) for name in weights)
