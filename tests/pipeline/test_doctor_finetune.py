"""mpp/doctor.py with the words of mpp/finetune.py: what that would refuse is a failed check, and nothing is begun, changed or read that counts."""

import json
import shutil
from pathlib import Path

import pytest

from mpp.base.errors import ConfigError
from mpp.base.text import sized
from mpp.checks import images, recipe
from mpp.config.finetune import FinetuneConfig
from mpp.config.pretrain import PretrainConfig
from mpp.doctor import main, parse, schema_of
from mpp.mains import doctor
from mpp.mains.plan import Counts
from mpp.train.zero_costs import held_at_most
from tests.forks import Forked
from tests.pipeline.conftest import ROOT, environment, finish, free_port, tensors
from tests.pipeline.finetune_runs import run_all, write_encoder, write_images
from tests.pipeline.test_doctor import below, of

ALL = {
    "processes", "program", "versions", "device", "cores", "open files", "encoder", "labels", "test", "hold-out", "batch", "samples", "shared memory",
    "compilers", "run folder", "other runs", "learning rate", "images", "model", "start", "disk", "memory", "step", "loader", "length", "clocks",
}  # fmt: skip
TINY = [
    "model={drop_path: 0, head_std: 0.01}",
    "augment={rand_augment: null}",
    "optim={base_lr: 1e-3, lr_batch: null, epochs: 2, warmup_epochs: 1, ema: 0.9}",
    "data={global_batch: 8, holdout_fraction: 0.25}",
    "system={precision: fp32, micro_batch_max: 4, workers: 0}",
    "checkpoint={every_samples: 16, keep: 9}",
    "log={every_steps: 1}",
]


@pytest.fixture(autouse=True)
def soon(monkeypatch, tmp_path):
    monkeypatch.setattr(images, "TIMED_SECONDS", 0.02)
    monkeypatch.setattr(recipe, "STEP_SECONDS", 0.05)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # where test reads would be noted


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    write_encoder(folder / "encoder", seed=0)
    write_encoder(folder / "another", seed=1)
    write_images(folder / "train", {"ant": 20, "bee": 16, "cat": 12}, seed=0)
    write_images(folder / "test", {"ant": 4, "bee": 4, "cat": 4}, seed=1)
    write_images(folder / "other", {"ant": 4, "bee": 4, "dog": 4}, seed=1)
    write_images(folder / "few", {"ant": 3, "bee": 3}, seed=1)
    return folder


def words(given: Path, run_dir: Path) -> list[str]:
    return [*TINY, f"encoder={given}/encoder", f"train={given}/train", f"test={given}/test", f"run_dir={run_dir}"]


def examined(capsys, *asked: str) -> tuple[int, dict]:
    capsys.readouterr()
    status = main(["--json", *asked])
    return status, json.loads(capsys.readouterr().out)


def test_a_fine_tuning_that_would_go_well_is_told_so_and_nothing_is_left(given, tmp_path, capsys):
    before = below(given)
    status, told = examined(capsys, *words(given, tmp_path / "run"))
    assert (status, told["failed"], told["processes"]) == (0, 0, 1), told
    assert {each["name"] for each in told["checks"]} == ALL
    assert of(told, "program")["found"] == "looked at as mpp/finetune.py would run it"
    assert of(told, "encoder")["found"].startswith("encoder (timm): vit_tiny_patch16_224, 10,944 parameters, pretrained at 16 px")
    assert "48 images of 3 classes, 12 of them held out; trained on are 36, 9 to 15 a class" in of(told, "labels")["found"]
    assert "36 training images, 4 steps of 8 an epoch in 4 streams" in of(told, "samples")["found"]
    assert (
        of(told, "model")["found"]
        == "vit_tiny_patch16_224 (depth 3, width 16, heads 2) at 16x16 with a head for 3 classes: 10,995 parameters"
    )
    assert of(told, "start")["found"] == "starts, 8 steps in all"
    assert "after a warm-up of 32 samples" in of(told, "learning rate")["found"]
    assert list(tmp_path.iterdir()) == [] and below(given) == before  # no run folder, no ledger, no lock


@pytest.mark.parametrize(
    ("asked", "name", "found", "fix"),
    [
        (["encoder=nowhere"], "encoder", "nowhere", ""),
        (["train=nowhere/train"], "labels", "no such folder", "give one of them"),
        (["train=cifar10:{tmp}/none"], "labels", "to which a run would download them", "copy them there"),
        (["test={given}/train"], "labels", "is the same split as train", "give another"),
        (["test={given}/other"], "labels", "only one of them has 'cat'", "one data_prep/make_shards.py"),
        (["data.holdout_fraction=0.9", "train={given}/few", "test=null"], "labels", "too few labelled images", "holdout_fraction=0"),
        (["data.labels_per_class=12"], "labels", "fewer than labels_per_class=12", "lower it"),
        (["data.global_batch=40"], "samples", "exceeds the 36 training samples", "a batch of 36 or fewer"),
        (["data.streams=3"], "batch", "data.streams=3 must divide", "leave it null"),
        (["optim.warmup_epochs=3"], "length", "a warm-up of 12 steps exceeds the run's 8", "optim.warmup_epochs"),
        (["model.resolution=18"], "model", "whole multiples of the patch size", "nearest"),
        (["resume=must"], "start", "holds no commit", "resume=auto"),
        (["resume=must", "repeats=2"], "start", "hold no commit", "resume=auto"),
        (["run_dir=/proc/run"], "run folder", "cannot be written", "a disk that you may write to"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)  # fmt: skip
def test_each_fault_is_one_failed_check_with_its_fix(asked, name, found, fix, given, tmp_path, capsys):
    asked = [word.format(given=given, tmp=tmp_path) for word in asked]
    status, told = examined(capsys, *words(given, tmp_path / "run"), *asked)
    failed = {each["name"]: each for each in told["checks"] if each["verdict"] == "failed"}
    assert status == 1 and failed.keys() - {"disk"} == {name}  # of /proc, which has no room either
    assert found in failed[name]["found"] + failed[name]["fix"] and fix in failed[name]["fix"] and failed[name]["fix"], failed
    assert list(tmp_path.iterdir()) == []


def test_without_an_encoder_the_images_are_looked_at_nevertheless(given, tmp_path, capsys):
    _, told = examined(capsys, *words(given, tmp_path / "run"), "encoder=nowhere")
    assert {each["name"] for each in told["checks"]} >= {"labels", "hold-out", "samples", "images", "learning rate", "loader", "clocks"} - {
        "loader"
    }


def test_which_program_is_meant_is_known_by_the_keys(monkeypatch):
    monkeypatch.chdir(ROOT)
    schema = lambda *asked: schema_of(parse(list(asked)))
    for path in sorted(Path("configs").glob("*.yaml")):
        assert schema("--config", str(path)) is (FinetuneConfig if path.name.startswith("finetune_") else PretrainConfig), path
    assert schema("encoder=runs/a", "train=shards/train") is FinetuneConfig
    assert schema("data.shards=shards/train") is schema() is schema("optim.base_lr=1e-3", "optim.nonsense=1") is PretrainConfig
    with pytest.raises(ConfigError, match=r"features.crop: keys of mpp/linear_probe.py"):
        schema("encoder=runs/a", "train=shards/train", "features.crop=0.9")


def test_what_no_file_can_know_is_asked_for(given):
    with pytest.raises(ConfigError, match="encoder= is missing"):
        main(["--config", "configs/finetune_cifar.yaml", f"train={given}/train"])
    with pytest.raises(ConfigError, match=r"unknown key 'augment\.mixupp'"):
        main([f"encoder={given}/encoder", f"train={given}/train", "augment.mixupp=1"])


def test_a_slow_loader_is_told_with_what_fine_tuning_can_do_about_it(given, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor.images, "loader_rate", lambda *_: images.LoaderRate(0.5, 1.0, 1))
    _, told = examined(capsys, *words(given, tmp_path / "run"))
    slow = of(told, "loader")
    assert slow["verdict"] == "warning" and slow["fix"].endswith("or make shards with --resize") and "data.views" not in json.dumps(told)
    _, told = examined(capsys, *words(given, tmp_path / "run"), "--gpus", "2", "--per-node", "2")
    assert of(told, "loader")["fix"].startswith("make shards with --resize, or take system.decode=device")


def test_a_preset_is_settled_as_the_run_would(given, tmp_path, capsys):
    asked = [f"encoder={given}/encoder", f"train={given}/train", f"test={given}/test", f"run_dir={tmp_path / 'run'}", "system.workers=0"]
    assert main(["--config", "configs/finetune_small.yaml", "--json", *asked]) == 0
    told = json.loads(capsys.readouterr().out)
    plan, time = [each["found"] for each in told["checks"] if each["name"] == "length"]
    assert plan.startswith("fit small: 43 labels | ") and time.split()[0].replace(",", "").isdigit()
    assert "(the file" not in of(told, "learning rate")["found"]


def test_machines_that_are_meant_are_looked_at_from_a_login_machine(given, tmp_path, capsys):
    asked = [*words(given, tmp_path / "run"), "--gpus", "4", "--per-node", "2"]
    status, told = examined(capsys, *asked)
    assert status == 0 and "an H100, by arithmetic" in of(told, "memory")["found"]
    assert of(told, "lost nodes")["found"] == "of 2 nodes x 2: with 1 lost the other goes on"


@pytest.mark.parametrize("optim", ["adamw", "sgd", "sgd without momentum"])
def test_what_is_kept_and_held_follows_from_the_optimiser(optim, given, tmp_path, capsys, monkeypatch):
    """Of P parameters a checkpoint has weight, moments and average; so has the memory, beside a step's own."""
    asked, seen = [f"optim.name={optim.split()[0]}", *(["optim.momentum=0"] if "without" in optim else [])], []
    memory = recipe.memory
    monkeypatch.setattr(recipe, "memory", lambda found, *rest: seen.append(found) or memory(found, *rest))
    _, told = examined(capsys, *words(given, tmp_path / "run"), *asked)
    (found,) = seen
    each = {"adamw": 4, "sgd": 3}.get(optim, 2)  # weight, average, moments
    assert isinstance(found, Counts) and of(told, "disk")["found"].startswith(f"10 checkpoints of {sized(10995 * 4 * each)}: ")
    assert held_at_most(found.parameters, 0, 1, 0) == 4 * 10995 * each and found.flop > 0 and found.bytes_at(4) > 4 * 10995


@pytest.fixture(scope="module")
def finished(given, tmp_path_factory):
    """A fine-tuning alone, and two of three repeats."""
    folder = tmp_path_factory.mktemp("finished")
    asked = lambda name, *more: [*words(given, folder / name), f"ledger={folder}/reads", *more]
    run_all(folder, {"alone": asked("alone"), "series": asked("series", "repeats=2")})
    return folder


@pytest.mark.slow
def test_what_has_been_done_of_it_is_told_and_left_as_it_is(finished, given, tmp_path, capsys):
    inside = lambda: below(finished / "alone") | below(finished / "series")
    before = inside()
    alone = words(given, finished / "alone")
    start = lambda *asked: of(examined(capsys, *asked)[1], "start")
    assert start(*alone)["found"] == "already finished at step 8: nothing to do, 8 steps in all"
    (finished / "alone" / "results.json").rename(tmp_path / "results.json")
    assert start(*alone)["found"] == "all 8 steps are done, only measuring is left, 8 steps in all"
    shutil.move(tmp_path / "results.json", finished / "alone" / "results.json")
    assert start(*alone, "optim.epochs=3")["found"] == "resumes at step 8, 12 steps in all"
    for changed, said in (
        (["optim.layer_decay=0.5"], "was written with optim.layer_decay=0.65"),
        ([f"encoder={given}/another"], "encoder has changed"),
        (["repeats=2"], "holds a fine-tuning of its own"),
    ):
        found = start(*alone, *changed)
        assert found["verdict"] == "failed" and said in found["found"] and "give another run_dir" in found["fix"], found
    series = words(given, finished / "series")
    assert (
        start(*series, "repeats=3")["found"]
        == "repeat-0, repeat-1: already finished at step 8: nothing to do; repeat-2: starts; 8 steps in each"
    )
    assert "holds repeats of a fine-tuning" in start(*series)["found"]
    assert "was trained in 2 cycles" in start(*series, "repeats=3", "optim.epochs=3")["found"]
    assert inside() == before and not (tmp_path / "state").exists()
    in_it = tensors(finished / "alone", 8)
    committed = sum(tensor.numel() * tensor.element_size() for tensor in in_it.values())
    assert {name.partition("/")[0] for name in in_it} == {"weight", "exp_avg", "exp_avg_sq", "ema"}
    assert committed == 4 * 10995 * 4 and "4 of them there" in of(examined(capsys, *alone)[1], "disk")["found"]


@pytest.mark.long
def test_two_processes_look_at_themselves_and_who_has_another_encoder_is_named(given, tmp_path):
    """The encoder is a folder of each process's own under one name, as on two hosts."""

    def ask(encoders: list[str]):
        port, made = free_port(), []
        for rank in (0, 1):
            host = tmp_path / f"host{rank}"
            host.mkdir(exist_ok=True)
            if not (host / "encoder").is_symlink() and encoders[rank]:
                (host / "encoder").symlink_to(given / encoders[rank])
            asked = [str(ROOT / "mpp/doctor.py"), *words(given, tmp_path / "run"), "encoder=encoder", "--json"]
            made.append(Forked(asked, cwd=host, env=environment(rank, 2, port) | {"PYTHONPATH": str(ROOT)}))
        found = finish(made)
        return found.status, json.loads(found.out), found.err

    status, told, said = ask(["encoder", ""])
    assert status == [1, 1], said
    lacks = [each for each in told["checks"] if each["name"] == "encoder" and each["verdict"] == "failed"]
    assert len(lacks) == 1 and lacks[0]["found"].startswith("rank 1 (host")
    assert "exceeds" not in json.dumps(told) and of(told, "all-reduce")["verdict"] in ("ok", "warning")
    status, told, said = ask(["encoder", "another"])
    odd = [each for each in told["checks"] if each["name"] == "encoder" and each["verdict"] == "failed"]
    assert status == [1, 1] and "reads other weights there than rank 0" in odd[0]["found"], told
    (tmp_path / "host1" / "encoder").unlink()
    status, told, said = ask(["encoder", "encoder"])
    assert status == [0, 0], (told, said)
    assert {each["name"] for each in told["checks"]} == ALL | {"all-reduce"} and told["processes"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host0", "host1"]
