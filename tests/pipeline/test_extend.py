"""The target, the mask, the decoder and the probe of docs/extend.md, put into a copy of mpp as the page says, train and measure."""

import json
import os
import re
import shutil

import pytest

from tests.forks import run_forked
from tests.pipeline.conftest import ROOT, TINY, environment, free_port, metrics

PLACES = {
    "brightness": "mpp/recipe/targets",
    "checker": "mpp/recipe/masks",
    "mlp": "mpp/recipe/decoders",
    "centroid": "mpp/transfer/probes",
}
LISTS = {
    "brightness": "    | CodebookTarget,",
    "checker": " | TurnMask,",
    "mlp": " | PooledDecoder,",
    "centroid": ", FewShotProbe)",
}  # their ends today


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of mpp with the files of the page, and its lines in the folders' lists."""
    copy = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "mpp", copy / "mpp", ignore=shutil.ignore_patterns("__pycache__"))
    blocks = re.findall(r"^```py\n(.*?)^```$", (ROOT / "docs" / "extend.md").read_text(), re.M | re.S)
    files = [block for block in blocks if block.startswith('"""')]
    assert len(files) == len(PLACES) and len(blocks) == 2 * len(files)
    for name, folder in PLACES.items():
        (file,) = [block for block in files if re.search(rf"name: Literal..{name}|key, title = .{name}", block)]
        (line,) = [block for block in blocks if block.startswith(f"from {folder.replace('/', '.')}.{name} import ")]
        imported, listed = line.rstrip().split("\n")
        (copy / folder / f"{name}.py").write_text(file)
        known, end = (copy / folder / "__init__.py").read_text(), LISTS[name]
        assert known.count(end) == 1
        known = known.replace(end, end[:-1] + ("\n" if name == "brightness" else "") + listed)
        (copy / folder / "__init__.py").write_text(known.replace("\nfrom mpp.", f"\n{imported}\nfrom mpp.", 1))
    return copy


def run(copy, *words):
    done = run_forked(list(words), cwd=copy, env=os.environ | environment(0, 1, free_port()) | {"PYTHONPATH": str(copy)})
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_choices_of_the_page_train_are_drawn_and_measure(extended, shards, tmp_path):
    recipe = [
        "mask={name: checker}",
        "target={name: brightness, scale: 32}",
        "decoder={name: mlp, width: 24}",
        f"run_dir={tmp_path / 'run'}",
        f"data.shards={shards}",
    ]
    said = run(extended, "mpp/pretrain.py", *TINY, *recipe)
    assert "16 patches, 8 predicted" in said and "target brightness" in said and "verdict  hold-out skill" in said
    skills = [row["holdout/skill"] for row in metrics(tmp_path / "run").values() if "holdout/skill" in row]
    assert len(skills) == 2 and all(skill < 1 for skill in skills) and len(list((tmp_path / "run" / "pictures").glob("*.png"))) == 2

    probe = ["knn.curve=false", "linear.curve=false", "few_shot.shots=[1]", "random_inits=1", "centroid.shrink=[0, 0.9]"]
    run(extended, "mpp/linear_probe.py", f"encoder={tmp_path / 'run'}", f"train={shards}", f"out={tmp_path / 'out'}", *probe)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert rows.keys() == {"majority class", "raw pixels", "random init", "pretrained"}
    # The two classes are dark and light, which their means tell apart.
    assert rows["raw pixels"]["centroid"]["accuracy"] > 0.8 and "balanced_accuracy" in rows["pretrained"]["centroid"]
