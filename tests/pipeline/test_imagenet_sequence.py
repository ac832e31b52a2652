"""The way of docs/imagenet.md from ImageNet's official archives to the table, its one-node block line by line, on photographs packed as those are."""

import io
import json
import os
import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from safetensors.numpy import load_file

from mpp.data.shards import ShardSet
from tests.forks import run_forked
from tests.official_imagenet import write_official
from tests.pipeline.conftest import ROOT, finish, start

pytestmark = pytest.mark.slow
PHOTOS = Path(os.environ.get("MPP_TEST_DATA", ROOT.parent / "shared" / "data")) / "photos-300.tar"
CLASSES, TRAIN, VAL = 4, 9, 3  # TRAIN and VAL photographs of each class
PROCESSES = 2  # what `deepspeed` starts here

# Appended to each line, to make it small and nothing else.
SMALL = {
    "data_prep/make_shards.py": ["--samples-per-shard=8", "--workers=1", "--quiet"],
    "data_prep/verify_shards.py": ["--quiet"],
    "mpp/pretrain.py": [
        "model.image_size=32", "model.patch_size=8", "model.width=32", "model.depth=2", "model.heads=2",
        "data.global_batch=8", "data.holdout_samples=4", "optim.total_samples=32", "optim.warmup_samples=8",
        "system={precision: fp32, micro_batch_max: 8, workers: 0}", "log.pictures=0",
    ],
    "mpp/linear_probe.py": [
        "features.workers=0", "features.batch=8", "linear.epochs=2", "linear.learning_rates=[0.1]", "logistic.strengths=[1]", "knn.k=[3]",
        "few_shot.shots=[1]", "few_shot.trials=2", "features.pixel_side=8",
    ],
    "mpp/finetune.py": [
        "data.global_batch=4", "optim.epochs=1", "optim.warmup_epochs=0", "system={precision: fp32, micro_batch_max: 2, workers: 0}",
    ],
    "mpp/results.py": [],
    "mpp/export.py": [],
}  # fmt: skip


def block() -> list[str]:
    section = (ROOT / "docs" / "imagenet.md").read_text().split("## One node\n")[1].split("\n## ")[0]
    one_node = re.search(r"\n\n((?:    \S.*\n)+)", section)
    assert one_node
    return [line.strip() for line in one_node[1].splitlines()]


def photographs() -> list[bytes]:
    """48 of them, 48 pixels on the longer side."""
    if not PHOTOS.exists():
        pytest.skip(f"{PHOTOS} is not there; set MPP_TEST_DATA to the folder that holds it")
    made = []
    with tarfile.open(PHOTOS) as tar:
        for member in tar.getmembers()[: CLASSES * (TRAIN + VAL)]:
            image = Image.open(tar.extractfile(member))  # type: ignore[arg-type]
            image.draft("RGB", (48, 48))
            small = image.convert("RGB")
            small.thumbnail((48, 48))
            small.save(buffer := io.BytesIO(), "JPEG")
            made.append(buffer.getvalue())
    return made


@pytest.fixture(scope="module")
def sequence(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The folder in which every line was run, and what each said."""
    folder = tmp_path_factory.mktemp("imagenet")
    photos = np.array_split(np.array(photographs(), dtype=object), CLASSES)
    wnids = ["n02000003", "n01440764", "n03000002", "n01500009"]  # by ILSVRC2012_ID, which is not the order of the alphabet
    train = {wnid: list(several[:TRAIN]) for wnid, several in zip(wnids, photos, strict=True)}
    val = [(wnid, data) for wnid, several in zip(wnids, photos, strict=True) for data in several[TRAIN:]]
    checksum = write_official(folder / "official", train, val[::2] + val[1::2])
    for wnid, several in train.items():
        (folder / "folders" / wnid).mkdir(parents=True)
        for number, data in enumerate(several):
            (folder / "folders" / wnid / f"{number}.JPEG").write_bytes(data)
    for name in ("mpp", "data_prep", "configs"):
        (folder / name).symlink_to(ROOT / name)
    said = {}
    for line in block():
        launcher, program, *words = shlex.split(line.replace("/data/ILSVRC2012", str(folder / "official")))
        words += SMALL[program] if "--check" not in words else []
        words += ["--checksum", checksum] if "--checksum" in words else []  # of this kit, instead of the official ones
        if launcher == "deepspeed":
            done = finish(start(words, PROCESSES, [program], folder), timeout=120)
            assert done.status == [0] * PROCESSES, f"{line}\n{done.err[-3000:]}"
            said[line] = done.out
        else:
            alone = run_forked([program, *words], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"})
            assert alone.returncode == 0, f"{line}\n{alone.stderr[-3000:]}"
            said[line] = alone.stdout
    return folder, said


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def out_of(said: dict[str, str], program: str) -> str:
    return "\n".join(text for line, text in said.items() if program in line)


def test_classes_are_torchvisions_and_every_image_is_in_its_split(sequence):
    folder, _ = sequence
    expected = torchvision.datasets.ImageFolder(folder / "folders")
    train, val = (ShardSet.open(folder / "imagenet" / split) for split in ("train", "val"))
    assert train.classes == val.classes == expected.classes
    labels = {Path(path).read_bytes(): label for path, label in expected.samples}
    assert {train.read(at): int(train.labels[at]) for at in range(len(train))} == labels
    assert np.bincount(val.labels).tolist() == [VAL] * CLASSES


def test_every_val_image_is_counted_once_by_each_program_and_read_once(sequence):
    folder, said = sequence
    images = CLASSES * VAL
    truth = ShardSet.open(folder / "imagenet" / "val").labels
    assert f"test      imagenet/val: {images} of {images} images, 0 repeated" in out_of(said, "linear_probe.py")
    assert out_of(said, "finetune.py").count(f"measured {images} of {images} images, 0 repeated of imagenet/val") == 4
    runs = ["mpp/transfer/imagenet", "mpp-finetuned", "scratch", "mpp-1percent", "mpp-10percent"]
    for run in runs:
        found = results(folder / "runs" / run)
        assert (found["reported_on"], found["reported_images"]) == ("test", images)
        assert len((folder / "runs" / run / "test_reads.jsonl").read_text().splitlines()) == 1
        answers = load_file(folder / "runs" / run / "predictions.safetensors")
        assert answers["samples"].tolist() == list(range(images))
        assert answers["truth"].tolist() == truth.tolist()
    counts = [(results(folder / "runs" / run)["test_reads"], results(folder / "runs" / run)["test_reads_folders"]) for run in runs]
    assert sorted(counts) == [(number, number) for number in range(1, 6)]  # one ledger: the fifth folder's read was the fifth
    trained = [results(folder / "runs" / run)["train_images"] for run in runs]
    assert trained == [36, 32, 32, 4, 4]  # the probe's hold-out comes off later; fine-tuning holds out one of each class at least


def test_one_table_has_every_row_and_the_exports_hold(sequence):
    folder, said = sequence
    shown = out_of(said, "results.py")
    tables = [line for line in shown.splitlines() if line.startswith("imagenet/val")]
    assert len(tables) == 3 and len(set(tables)) == 1, shown  # all on the same images, and apart by how many labels were fine-tuned on
    assert "data.label_fraction=0.1 and not 0.01" in shown or "data.label_fraction=0.01 and not 0.1" in shown
    for row in ("raw pixels", "random init", "runs/mpp", "runs/mpp-1percent", "runs/mpp-10percent", "runs/mpp-finetuned", "runs/scratch"):
        assert len(re.findall(rf"^{row}  ", shown, re.M)) >= 1, shown
    assert "runs (seeds x draws)" in shown
    assert results(folder / "runs" / "scratch")["rows"].keys() == {"majority class", "from scratch"}
    made, checked = (text for line, text in said.items() if "export.py" in line)
    for kind in ("timm", "transformers", "safetensors"):
        assert f"{kind:18}exported/{kind}: max|delta|" in made and f"{kind:18}exported/{kind}: max|delta|" in checked
