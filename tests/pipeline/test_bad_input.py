"""What bad input gets: one line that names the value, the rule and the remedy, a non-zero exit, and no traceback."""

import json
import shutil

import pytest
import torch

from mpp.base.errors import run_program
from mpp.disk.files import seal_of
from mpp.interop.read_encoder import read_encoder
from mpp.model.tokens import sincos_positions
from mpp.pretrain import main
from tests.pipeline.conftest import TINY, pretrain, succeed


def fails(capsys, *words: str) -> str:
    """Errors that are found before any process group is made: in this process, for speed."""
    with pytest.raises(SystemExit) as leaving:
        run_program(lambda _: main([*TINY, *words]))
    err = capsys.readouterr().err
    assert leaving.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    "word, expected",
    [
        ("optim.base_lrr=1", ["optim.base_lrr", "optim.base_lr"]),
        ("optim.base_lr=fast", ["optim.base_lr", "fast", "number"]),
        ("data.flip=no", ["data.flip", "no", "boolean"]),
        ("model.patch_size=5", ["image_size=16", "patch_size=5", "15", "20"]),
        ("corruption.name=drop", ["drop", "decoder.name=transformer"]),
        ("mask.ratio=0.01", ["mask.ratio=0.01", "16 patches"]),
        ("model.arch=vit_gigantic", ["vit_gigantic", "timm"]),
        ("model.arch=resnet50", ["resnet50", "vit"]),
        ("resume=must", ["resume=must", "no commit"]),
        ("resume=40", ["resume=40", "no checkpoint of step 40", "none"]),
        ("init_from=/nowhere", ["/nowhere", "neither a folder nor a file"]),
        ("init_from=timm:vit_tiny_patch16_224@random", ["init_from=timm:vit_tiny_patch16_224@random", "no weights", "leave init_from out"]),
        ("data.holdout_samples=48", ["48", "fewer"]),
        ("data.global_batch=47", ["47", "40"]),
        ("data.streams=5", ["data.streams=5", "divide", "12"]),
        ("optim.base_lr=1e999", ["optim.base_lr=inf", "finite"]),
        ("optim.betas=[1, 2]", ["optim.betas", "less than 1"]),
        ("corruption={mask: 0, swap: 0.5, keep: 0.5}", ["masks none", "corruption.mask"]),
        ("model=foo", ["model='foo'", "section"]),
        ("data.mean=[.5, .5]", ["data.mean.2 is missing"]),
        ("--nosuch", ["--nosuch", "--help"]),
        ("words without equals", ["key=value"]),
    ],
)
def test_a_config_that_cannot_be_right_is_one_line(word, expected, shards, tmp_path, capsys):
    err = fails(capsys, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", word)
    for part in expected:
        assert part in err
    assert not (tmp_path / "run").exists()


def test_images_that_are_trained_on_are_no_holdout(shards, tmp_path, capsys):
    err = fails(capsys, f"data.shards={shards}", f"run_dir={tmp_path / 'run'}", f"data.holdout_shards={shards}")
    assert "trained on" in err
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_made_is_one_line(shards, capsys):
    assert "cannot be made" in fails(capsys, f"data.shards={shards}", "run_dir=/dev/null/run")


def test_a_batch_that_the_world_cannot_share_names_the_worlds_that_can(shards, tmp_path):
    finished = pretrain(tmp_path / "run", shards, "data.streams=3", world=2)
    assert finished.status == [2, 2] and "Traceback" not in finished.err
    assert len(finished.error_lines) == 1
    assert "12" in finished.error_lines[0] and "1, 3 processes" in finished.error_lines[0]


def altered(shards, tmp_path):
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    return copy


def test_missing_shards_manifest_and_cut_shards_are_named(shards, tmp_path, capsys):
    run = f"run_dir={tmp_path / 'run'}"
    assert "/nowhere" in fails(capsys, "data.shards=/nowhere", run)
    copy = altered(shards, tmp_path)
    first = sorted(copy.glob("*.tar"))[0]
    first.write_bytes(first.read_bytes()[:-512])
    assert first.name in fails(capsys, f"data.shards={copy}", run)
    first.unlink()
    assert first.name in fails(capsys, f"data.shards={copy}", run)
    (copy / "manifest.json").unlink()
    assert "make_shards.py" in fails(capsys, f"data.shards={copy}", run)


def test_an_edited_shard_of_the_same_size_stops_the_run_or_is_replaced_and_counted(shards, tmp_path):
    copy = altered(shards, tmp_path)
    victim = sorted(copy.glob("*.tar"))[1]
    content = bytearray(victim.read_bytes())
    content[700] ^= 1  # inside the first image
    victim.write_bytes(bytes(content))
    strict = pretrain(tmp_path / "strict", copy)
    assert strict.status == [2] and "Traceback" not in strict.err
    (line,) = strict.error_lines
    assert victim.name in line and "max_bad_fraction" in line
    lenient = succeed(tmp_path / "lenient", copy, "data.max_bad_fraction=0.5")
    assert "done" in lenient.out
    notes = [json.loads(text) for text in (tmp_path / "lenient" / "bad_samples.rank0.jsonl").read_text().splitlines()]
    assert notes and all(victim.name in note["where"] for note in notes)


@pytest.fixture(scope="module")
def short_run(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("short") / "run"
    succeed(run, shards, "optim.total_samples=24", "optim.warmup_samples=12")
    return run


@pytest.mark.parametrize(
    "word, expected",
    [
        ("model.depth=3", ["model.depth=2", "3", "run_dir"]),
        ("target={name: pixels}", ["target.", "mean_color"]),
        ("seed=1", ["seed=0", "1"]),
        ("data.crop_scale=[0.9, 1]", ["data.crop_scale"]),
    ],
)
def test_resuming_with_what_changes_results_is_refused(word, expected, short_run, shards, capsys):
    err = fails(capsys, f"data.shards={shards}", f"run_dir={short_run}", "optim.total_samples=24", "optim.warmup_samples=12", word)
    for part in expected:
        assert part in err


def test_resuming_with_a_changed_manifest_is_refused(short_run, shards, tmp_path, capsys):
    copy = altered(shards, tmp_path)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["source"]["name"] = "another"
    (copy / "manifest.json").write_text(json.dumps(manifest | {"check": seal_of(manifest, "check")}))
    err = fails(capsys, f"data.shards={copy}", f"run_dir={short_run}", "optim.total_samples=24", "optim.warmup_samples=12")
    assert "manifest" in err and "changed" in err


def test_init_from_takes_the_encoder_of_another_recipe_and_refuses_another_encoder(short_run, shards, tmp_path, capsys):
    row = [
        "corruption={name: drop}",
        "decoder={name: transformer, depth: 1, width: 32, heads: 2}",
        "target={name: pixels, normalise: true}",
    ]
    short = ["optim.total_samples=12", "optim.warmup_samples=0", "log.every_steps=1"]
    succeed(tmp_path / "mae", shards, *row, *short, f"init_from={short_run}")
    fixed = tmp_path / "fixed"
    succeed(fixed, shards, *short, "model.position=sincos2d", f"init_from={short_run}")
    assert torch.equal(read_encoder(fixed).net.pos_embed[0, 1:], sincos_positions(32, (4, 4)))
    other = pretrain(tmp_path / "other", shards, "model.width=48", "model.heads=3", f"init_from={short_run}")
    assert other.status == [2] and len(other.error_lines) == 1
    assert "there width 32 and here 48, heads 2 and here 3); to begin from it give model.width=32 model.heads=2" in other.error_lines[0]
    assert not (tmp_path / "other").exists()
