"""The Kubernetes jobs: valid for the oldest and the newest cluster, and their commands make the set that one run makes."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from data_prep.make_shards import main, parse

ROOT = Path(__file__).parents[2]
PARTS, FINISH = (ROOT / "jobs" / "k8s" / name for name in ("make_shards.yaml", "make_shards_finish.yaml"))


def command(path: Path) -> list[str]:
    (container,) = yaml.safe_load(path.read_text())["spec"]["template"]["spec"]["containers"]
    return container["command"] + container.get("args", [])


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "k8s").glob("*.yaml")), ids=lambda path: path.name)
def test_the_manifests_hold_to_the_schemas(path):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for version in ("1.27", "1.37"):
        for manifest in yaml.safe_load_all(path.read_text()):
            kubernetes_validate.validate(manifest, version, strict=True)


def test_all_pods_and_the_finishing_job_make_one_set(tmp_path, picture):
    (tmp_path / "photos").mkdir()
    for number in range(40):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(picture(number))
    spec = yaml.safe_load(PARTS.read_text())["spec"]
    assert spec["completions"] == 2 * 4 == spec["parallelism"]
    local = [
        [word.replace("/data/", f"{tmp_path}/").replace("0.01", "0.1 --samples-per-shard 3 --workers 1 --quiet") for word in command(path)]
        for path in (PARTS, FINISH)
    ]
    pods = [
        subprocess.Popen(local[0], cwd=ROOT, env={**os.environ, "JOB_COMPLETION_INDEX": str(index)}, stderr=subprocess.PIPE, text=True)
        for index in range(spec["completions"])
    ]
    for pod in pods:
        _, complaints = pod.communicate(timeout=100)
        assert pod.returncode == 0, complaints
    made = {path.name for path in (tmp_path / "shards").rglob("*.tar")}
    assert len(made) == 12
    words = [word for text in local[1][2:] for word in text.split()]
    assert main(words) == 0
    assert main([words[0], str(tmp_path / "alone"), *words[2:]]) == 0
    for path in (tmp_path / "alone").rglob("*"):
        if path.is_file() and ".work" not in path.parts:
            assert (tmp_path / "shards" / path.relative_to(tmp_path / "alone")).read_bytes() == path.read_bytes()


def test_both_jobs_give_the_same_options():
    finish = vars(parse(command(FINISH)[2:]))
    words = command(PARTS)[2].replace('"$JOB_COMPLETION_INDEX/8"', "3/8").split()
    parts = vars(parse(words[words.index("data_prep/make_shards.py") + 1 :]))
    assert parts.pop("part") == (3, 8)
    assert finish.pop("part") is None
    assert parts == finish
