"""Every key of pretraining is changed once, in a run of three steps that must then show it: a key that nothing reads fails here."""

import json

import pytest
import torch

from mpp import fit_codebook
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.config.sections import ModelConfig
from mpp.data.training_set import open_training_set
from mpp.interop.encoder_folder import write_encoder
from mpp.model.encoder import build_encoder
from mpp.monitor.figures import figure_of
from tests.keys import Change, faults, keys, split
from tests.pipeline.conftest import finish, start

BASE = [
    "model={arch: vit_tiny_patch16_224, image_size: 16, patch_size: 4, width: 16, depth: 1, heads: 2}",
    "data={global_batch: 4, holdout_samples: 4, crop_scale: [0.5, 1]}",
    "optim={base_lr: 1e-2, warmup_samples: 4, total_samples: 12}",
    "log={every_steps: 1, holdout_every_steps: 1, pictures_every_steps: 1, pictures: 2}",
    "checkpoint={every_samples: 4, every_minutes: null, keep: 9}",
    "system={precision: fp32, micro_batch_max: 4, workers: 0}",
    "decoder={name: linear, head_std: 0.2}",  # with zeros the first loss would be ln 512 whatever the rest is
]
MAE = "corruption={name: drop}  decoder={name: transformer, depth: 1, width: 16, heads: 2}"
CROSS = "corruption={name: drop}  decoder={name: cross_attention, depth: 1, width: 16, heads: 2}"
BLOCK = "mask={name: block, ratio: 0.5, min_patches: 4}"
BLOCKS = "mask={name: multi_block, blocks: 2, block: 0.25, visible: 0.25}"
INVERSE = "mask={name: inverse_block}"
COLOUR = "mask={name: all}  corruption={name: grey}  target={name: chroma}"
TURNED = "mask={name: turn}  corruption={name: rotate}  target={name: rotation}"
GRID, PIXELS, DEEP = "target={name: color_grid, grid: 2, bits: 1}", "target={name: pixels}", "model.depth=2"
DROPPED = "model.depth=2  model.drop_path=0.5"
ROTARY = "model.arch=vit_small_patch16_rope_224  model.position=rotary"
REGISTERS = "model.arch=vit_betwixt_patch16_reg4_gap_256"
HOG = "target={name: hog, cell: 2}"
FEATURES = "target={name: features, blocks: 1, ema_start: 0.1, ema_end: 0.5, ema_samples: 20}"
CLUSTERS = "target={name: clusters, clusters: 8, ema_start: 0.5, ema_end: 0.9}"
FROZEN, CODEBOOK = "target={name: frozen, encoder: {encoder}}", "target={name: codebook, path: {codebook}}"
LARGE = "data.max_pixels=1300"  # the images have 576 to 1600 pixels
RESULTS = "first loss holdout weights"
SPEED = "loss holdout weights rate"  # what a key that only changes speed or what is written down leaves alone
CHANGES = {
    "run_dir": [Change("run_dir=elsewhere", "folder", same=SPEED)],
    "seed": [Change("seed=1", RESULTS + " samples", beside="log.samples=true")],
    "resume": [Change("resume=must", "error"), Change("resume=7", "error")],
    "init_from": [Change("init_from={reference}", RESULTS + " printed")],
    "model.arch": [Change("model.arch=vit_betwixt_patch16_reg4_gap_256", RESULTS + " parameters encoder")],
    "model.image_size": [Change("model.image_size=24", RESULTS + " parameters encoder")],
    "model.patch_size": [Change("model.patch_size=8", RESULTS + " parameters encoder")],
    "model.width": [Change("model.width=32", RESULTS + " parameters encoder")],
    "model.depth": [Change("model.depth=2", RESULTS + " parameters encoder")],
    "model.heads": [Change("model.heads=4", RESULTS + " encoder", same="parameters")],
    "model.class_tokens": [Change("model.class_tokens=0", RESULTS + " parameters encoder"), Change("model.class_tokens=8", RESULTS + " parameters encoder", MAE)],
    "model.registers": [Change("model.registers=2", RESULTS + " parameters encoder"), Change("model.registers=0", RESULTS + " parameters encoder", REGISTERS)],
    "model.position": [Change("model.position=sincos2d", RESULTS), Change("model.position=none", RESULTS + " encoder", ROTARY, same="parameters")],
    "model.rotary_frequencies": [Change("model.rotary_frequencies=[7, 7e-4]", RESULTS + " encoder", ROTARY, same="parameters")],
    "model.layer_scale": [Change("model.layer_scale=0.1", RESULTS + " parameters encoder"), Change("model.layer_scale=0", RESULTS + " encoder", ROTARY)],
    "model.qk_norm": [Change("model.qk_norm=true", RESULTS + " parameters encoder")],
    "model.drop_path": [Change("model.drop_path=0.9", "loss weights", DEEP, same="parameters")],
    "model.drop_path_rule": [Change("model.drop_path_rule=constant", "loss weights", DROPPED, same="parameters holdout_first")],
    "mask.name": [Change(BLOCK, RESULTS + " printed", same="parameters"), Change(BLOCKS, RESULTS + " printed", same="parameters"), Change(INVERSE, RESULTS + " printed", same="parameters"), Change(COLOUR, RESULTS + " printed parameters"), Change(TURNED, RESULTS + " printed")],
    "mask.ratio": [Change("mask.ratio=0.75", RESULTS + " printed"), Change("mask.ratio=0.75", RESULTS, BLOCK)],
    "mask.unit": [Change("mask.unit=2", RESULTS, same="parameters")],
    "mask.predicted": [Change("mask.predicted=0.25", RESULTS + " printed", same="parameters")],
    "mask.min_patches": [Change("mask.min_patches=8", RESULTS, BLOCK, same="parameters")],
    "mask.aspect": [Change("mask.aspect=[3, 4]", RESULTS, BLOCK, same="parameters")],
    "mask.blocks": [Change("mask.blocks=1", RESULTS + " printed", BLOCKS, same="parameters")],
    "mask.block": [Change("mask.block=0.125", RESULTS + " printed", BLOCKS, same="parameters")],
    "mask.context": [Change("mask.context=[0.3, 0.4]", RESULTS, BLOCKS, same="parameters")],
    "mask.visible": [Change("mask.visible=0.4", RESULTS, BLOCKS, same="parameters")],
    "mask.roll": [Change("mask.roll=false", RESULTS, INVERSE, same="parameters")],
    "corruption.name": [Change("corruption.name=drop", RESULTS + " parameters", "decoder={name: transformer, depth: 1, width: 16, heads: 2}")],
    "corruption.at": [Change("corruption.at=pixels", RESULTS + " parameters")],
    "corruption.mask": [Change("corruption={mask: 0.5, swap: 0.1, keep: 0.4}", RESULTS, same="parameters")],
    "corruption.swap": [Change("corruption={mask: 0.5, swap: 0.4, keep: 0.1}", RESULTS, same="parameters")],
    "corruption.keep": [Change("corruption={mask: 0.5, swap: 0.1, keep: 0.4}", RESULTS, "corruption={mask: 0.5, swap: 0.4, keep: 0.1}")],
    "target.name": [Change("target.name=color_grid", RESULTS + " parameters"), Change("target.name=pixels", RESULTS + " parameters"), Change(HOG, RESULTS + " parameters"), Change("target={name: features, blocks: 1}", RESULTS + " parameters printed")],
    "target.bits": [Change("target.bits=2", RESULTS + " parameters"), Change("target.bits=2", RESULTS + " parameters", GRID)],
    "target.grid": [Change("target.grid=1", RESULTS + " parameters", GRID)],
    "target.bins": [Change("target.bins=6", RESULTS + " parameters", HOG)],
    "target.cell": [Change("target.cell=4", RESULTS + " parameters", HOG)],
    "target.loss": [Change("target.loss=l1", RESULTS, PIXELS, same="parameters"), Change("target.loss=smooth_l1", RESULTS, PIXELS), Change("target.loss=l2", RESULTS, FEATURES)],
    "target.normalise": [Change("target.normalise=true", RESULTS, PIXELS, same="parameters")],
    "target.blocks": [Change("target.blocks=2", RESULTS, FEATURES + "  " + DEEP, same="parameters")],
    "target.beta": [Change("target.beta=0.5", RESULTS, FEATURES, same="parameters"), Change("target.beta=0.5", RESULTS, "target={name: pixels, loss: smooth_l1}")],
    "target.ema_schedule": [Change("target.ema_schedule=cosine", "loss holdout weights", FEATURES, same="first parameters"), Change("target.ema_schedule=lr", "loss holdout weights", FEATURES, same="first parameters")],
    "target.clusters": [Change("target.clusters=6", RESULTS + " parameters", CLUSTERS)],
    "target.temperature": [Change("target.temperature=0.5", RESULTS, CLUSTERS, same="parameters")],
    "target.target_temperature": [Change("target.target_temperature=0.5", RESULTS, CLUSTERS, same="parameters")],
    "target.iterations": [Change("target.iterations=1", RESULTS, CLUSTERS, same="parameters")],
    "target.by_place": [Change("target.by_place=false", RESULTS, CLUSTERS, same="parameters")],
    "target.head_lr_scale": [Change("target.head_lr_scale=3", "loss holdout weights", CLUSTERS, same="first parameters")],
    "target.head_decay_scale": [Change("target.head_decay_scale=9", "weights", CLUSTERS + "  optim.weight_decay=0.5", same="first parameters")],
    "target.encoder": [Change("target.encoder={encoder2}", RESULTS + " printed", FROZEN, same="parameters")],
    "target.path": [Change("target.path={codebook2}", RESULTS + " printed", CODEBOOK, same="parameters")],
    "target.ema_start": [Change("target.ema_start=0.9", "loss holdout weights", FEATURES, same="first parameters")],
    "target.ema_end": [Change("target.ema_end=0.9", "loss holdout weights", FEATURES, same="first parameters")],
    "target.ema_samples": [Change("target.ema_samples=0", "loss holdout weights", FEATURES, same="first parameters"), Change("target.ema_samples=null", "loss holdout weights", FEATURES, same="first parameters")],
    "decoder.name": [Change("decoder={name: transformer, depth: 1, width: 16, heads: 2}", RESULTS + " parameters"), Change("decoder={name: pooled}", RESULTS, TURNED, same="parameters")],
    "target.norm_blocks": [Change("target.norm_blocks=false", RESULTS, FEATURES + "  target.blocks=2  " + DEEP, same="parameters")],
    "target.final_norm": [Change("target.final_norm=true", RESULTS, FEATURES + "  target.norm=false  target.norm_blocks=false", same="parameters")],
    "target.norm": [Change("target.norm=false", RESULTS, FEATURES + "  target.norm_blocks=false", same="parameters")],
    "decoder.position": [Change("decoder.position=learned", RESULTS + " parameters", MAE), Change("decoder.position=rotary", RESULTS, CROSS, same="parameters")],
    "decoder.tokens": [Change("decoder.tokens=predicted", RESULTS, MAE + "  mask={name: random, ratio: 0.5, predicted: 0.25}", same="parameters")],
    "decoder.memory": [Change("decoder.memory=blocks", RESULTS + " parameters", CROSS)],
    "decoder.mlp_ratio": [Change("decoder.mlp_ratio=2", RESULTS + " parameters", CROSS)],
    "decoder.drop_path": [Change("decoder.drop_path=0.9", "loss weights", CROSS, same="parameters")],
    "decoder.head_std": [Change("decoder.head_std=0", RESULTS, same="parameters")],
    "decoder.depth": [Change("decoder.depth=2", RESULTS + " parameters", MAE)],
    "decoder.width": [Change("decoder.width=32", RESULTS + " parameters", MAE)],
    "decoder.heads": [Change("decoder.heads=4", RESULTS, MAE, same="parameters")],
    "optim.schedule": [Change("optim.schedule=constant", "rate weights", same="first")],
    "optim.start_lr": [Change("optim.start_lr=5e-3", "rate weights", same="first")],
    "optim.cosine_share": [Change("optim.cosine_share=0.5", "rate weights", same="first")],
    "optim.cooldown_samples": [Change("optim.cooldown_samples=8", "rate weights", "optim.schedule=wsd", same="first")],
    "optim.cooldown_shape": [Change("optim.cooldown_shape=linear", "rate weights", "optim.schedule=wsd  optim.cooldown_samples=8", same="first")],
    "optim.final_weight_decay": [Change("optim.final_weight_decay=5", "weights", same="rate first")],
    "optim.weight_decay_samples": [Change("optim.weight_decay_samples=4", "weights", "optim.final_weight_decay=5", same="rate first")],
    "optim.norm_decay_scale": [Change("optim.norm_decay_scale=1", "weights", same="rate first")],
    "optim.patch_embed_lr_scale": [Change("optim.patch_embed_lr_scale=0.1", "weights", same="rate first")],
    "optim.base_lr": [Change("optim.base_lr=1e-3", "rate weights", same="first")],
    "optim.lr_batch": [Change("optim.lr_batch=256", "rate weights", same="first")],
    "optim.final_lr": [Change("optim.final_lr=1e-3", "rate weights", same="first")],
    "optim.betas": [Change("optim.betas=[0.5, 0.999]", "weights", same="rate first"), Change("optim.betas=[0.9, 0.9]", "weights", same="rate")],
    "optim.eps": [Change("optim.eps=1e-2", "weights", same="rate first")],
    "optim.weight_decay": [Change("optim.weight_decay=0.5", "weights", same="rate first")],
    "optim.clip_norm": [Change("optim.clip_norm=0", "weights", "optim.clip_norm=1e-6", same="rate first")],
    "optim.warmup_samples": [Change("optim.warmup_samples=8", "rate weights", same="first")],
    "optim.epochs": [Change("optim.epochs=2", "rate steps weights", same="first")],
    "optim.total_samples": [Change("optim.total_samples=16", "rate steps weights", same="first")],
    "data.shards": [Change("data.shards={other}", RESULTS)],
    "data.weights": [Change("data.weights=[5, 1]", "first weights samples printed", "data.shards=[{other}, {square}]  log.samples=true", same="holdout_first rate")],
    "data.shuffle_buffer": [Change("data.shuffle_buffer=1", "first loss weights samples", "data.shards={stream}  log.samples=true", same="holdout_first")],
    "data.holdout_samples": [Change("data.holdout_samples=5", "holdout printed")],
    "data.holdout_shards": [Change("data.holdout_shards={other}", "holdout printed samples", "log.samples=true")],
    "data.global_batch": [Change("data.global_batch=2", "loss rate steps weights")],
    "data.views": [Change("data.views=2", "first loss weights samples", "log.samples=true")],
    "data.views_differ_in": [Change("data.views_differ_in=mask", "first loss weights samples", "data.views=2  log.samples=true", same="holdout_first")],
    "data.streams": [Change("data.streams=1", "first weights samples printed", "log.samples=true")],
    "data.block": [Change("data.block=2", "first weights samples", "data.streams=2  log.samples=true")],
    "data.crop_scale": [Change("data.crop_scale=[0.1, 0.2]", RESULTS)],
    "data.crop_ratio": [Change("data.crop_ratio=[0.5, 0.6]", RESULTS)],
    "data.flip": [Change("data.flip=false", RESULTS)],
    "data.vertical_flip": [Change("data.vertical_flip=true", RESULTS)],
    "data.turns": [Change("data.turns=true", RESULTS)],
    "data.mean": [Change("data.mean=[0.5, 0.4, 0.5]", RESULTS + " encoder")],
    "data.std": [Change("data.std=[0.5, 0.5, 0.3]", RESULTS + " encoder")],
    "data.max_pixels": [Change(LARGE, "error")],
    "data.skip_samples": [Change("data.skip_samples=4:8", "loss weights samples", beside="log.samples=true", same="rate")],
    "data.max_bad_fraction": [Change("data.max_bad_fraction=1", "error loss bad", LARGE)],
    "system.precision": [Change("system.precision=bf16", RESULTS + " printed", same="rate parameters")],
    "system.micro_batch_max": [Change("system.micro_batch_max=2", "printed micro_batch", same="rate steps")],
    "system.workers": [Change("system.workers=1", "printed", same=SPEED)],
    "system.images": [Change("system.images=ram", "printed", same="rate steps"), Change("system.images=device", "printed", "data.shards={square}", same="rate steps")],
    "system.zero_stage": [Change("system.zero_stage=1", "printed commits", same="first holdout_first rate")],
    "system.compile": [Change("system.compile=true", "compiled", same=SPEED)],
    "system.cuda_graphs": [Change("system.cuda_graphs=true", "compiled printed", same=SPEED)],
    "system.recompute": [Change("system.recompute=full", "recomputed", same=SPEED), Change("system.recompute=selective", "recomputed", MAE, same=SPEED)],
    "system.fused_attention": [Change("system.fused_attention=false", "attention", same="rate parameters"), Change("system.fused_attention=false", "attention", MAE)],
    "system.deepspeed": [Change("system.deepspeed={wall_clock_breakdown: true}", "engine", same=SPEED)],
    "log.every_steps": [Change("log.every_steps=2", "steps", same="holdout weights")],
    "log.holdout_every_steps": [Change("log.holdout_every_steps=2", "holdout", same="loss weights")],
    "log.pictures_every_steps": [Change("log.pictures_every_steps=2", "pictures", same=SPEED)],
    "log.pictures": [Change("log.pictures=1", "pictures", same=SPEED), Change("log.pictures=0", "pictures", same=SPEED)],
    "log.samples": [Change("log.samples=true", "samples files", same=SPEED)],
    "checkpoint.every_minutes": [Change("checkpoint.every_minutes=1e-9", "commits", "checkpoint.every_samples=null", same=SPEED)],
    "checkpoint.every_samples": [Change("checkpoint.every_samples=8", "commits", same=SPEED)],
    "checkpoint.keep_at_samples": [Change("checkpoint.keep_at_samples=[8]", "commits", "checkpoint.every_samples=null", same=SPEED)],
    "checkpoint.keep_every_samples": [Change("checkpoint.keep_every_samples=8", "commits", "checkpoint.every_samples=null", same=SPEED)],
    "checkpoint.keep": [Change("checkpoint.keep=2", "commits", same=SPEED)],
    "evaluate.images": [Change("evaluate.images=12", "features printed", "evaluate.every_steps=1", same=SPEED)],
    "evaluate.every_steps": [Change("evaluate.every_steps=2", "features printed", same=SPEED)],
    "evaluate.train": [Change("evaluate.train={other}", "features", "evaluate.every_steps=1", same=SPEED)],
}  # fmt: skip
ELSEWHERE = {
    "system.gradient_precision": "tests/pipeline/test_precision.py: one process exchanges nothing",
    "system.decode": "test_jpegs_are_decoded_where_system_decode_wants_them, which needs no GPU",
    "branch_from": "tests/pipeline/test_branches.py",
    "fit": "tests/pipeline/test_settling.py and tests/config/test_small.py, with its own files",
    "budget": "tests/pipeline/test_settling.py, against the clock",
    "resume_changes": "tests/pipeline/test_checkpoints.py, on runs that resume",
    "system.matrix_tflops": "tests/pipeline/test_speed_figures.py, on runs that are long enough",
    "system.max_skipped_steps": "tests/pipeline/test_bad_numbers.py, on steps that are not finite",
    "system.patience_seconds": "tests/pipeline/test_alive.py, on processes that stop",
    "system.patience_slow_seconds": "tests/processes/test_watchman.py",
    "system.disk_patience_seconds": "tests/disk/test_patience.py",
    "system.cache": "tests/pipeline/test_stores.py: it changes whence images come, and nothing of them",
    "system.cache_gb": "tests/pipeline/test_stores.py",
    "checkpoint.copy_to": "tests/pipeline/test_copies.py, on a store",
    "checkpoint.background": "tests/train/test_saving.py: it changes when a commit exists, and nothing of it",
    "checkpoint.give_up_minutes": "tests/train/test_saving.py, on disks that take nothing",
    "checkpoint.stop_after_minutes": "tests/train/test_saving.py, against the clock",
}

MANY = """
import contextlib, hashlib, io, json, re, sys, traceback
from pathlib import Path
import deepspeed, torch, torch.distributed as dist
import mpp.mains.pretrain as pretrain
import mpp.train.engine as engine
import mpp.train.gathering as gathering
from mpp.base.errors import UserError
from mpp.pretrain import main

world = engine.start_distributed()
gathering.start_distributed = lambda *_, **__: world  # one process group for all runs
dist.destroy_process_group = lambda *_: None
seen = {}
initialize, build_model, compile = deepspeed.initialize, pretrain.build_model, torch.nn.Module.compile
def initialized(*_, **words):
    seen["engine"], seen["micro_batch"] = words["config"], words["config"]["train_micro_batch_size_per_gpu"]
    return initialize(*_, **words)
def built(*words):
    model = build_model(*words)
    seen["attention"] = [module.fused_attn for module in model.modules() if hasattr(module, "fused_attn")]
    return model
deepspeed.initialize, pretrain.build_model = initialized, built
torch.nn.Module.compile = lambda *_, **__: seen.update(compiled=True)
import mpp.model.recompute
again = mpp.model.recompute.checkpoint
def counted(*given, **words):
    seen["recomputed"] = seen.get("recomputed", 0) + 1
    return again(*given, **words)
mpp.model.recompute.checkpoint = counted

def observe(run, printed):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    of = lambda name: [(row["step"], row[name]) for row in rows if name in row]
    sha = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    words = [line for line in printed.splitlines() if " img/s" not in line and not line.startswith(("run ", "encoder "))]
    seen.update(
        names=sorted({name for row in rows for name in row} - {"samples", "step"}), loss=of("train/loss"), first=of("train/loss")[0][1] if of("train/loss") else None, holdout=of("holdout/loss") + of("holdout/skill"),
        holdout_first=of("holdout/loss")[0], rate=of("optim/learning_rate"), norm=of("optim/gradient_norm"),
        steps=[row["step"] for row in rows if "features/rank" not in row], features=[of(f"features/{name}") for name in ("rank", "deviation", "linear", "knn")],
        bad=of("data/bad_samples"), parameters=re.search(r"([0-9,]+) parameters", printed)[1], printed=words,
        pictures=[(str(path.name), sha(path)) for path in sorted((run / "pictures").glob("*"))], files=sorted(path.name for path in run.iterdir()),
        samples=[path.read_text() for path in sorted(run.glob("samples.rank*"))], encoder=json.loads((run / "encoder" / "config.json").read_text()),
    )
    of_this_run = {"seal", "weights_sha256", "commit"}  # they cover its name and its commit
    seen["encoder"]["mpp"] = {key: value for key, value in seen["encoder"]["mpp"].items() if key not in of_this_run}
    seen["encoder"] = str(seen["encoder"]).replace(run.name, "RUN")
    commits = sorted((run / "checkpoints").glob("*/COMMIT.json"))
    seen["commits"] = [(path.parent.name, json.loads(path.read_text())["zero_stage"]) for path in commits]
    from mpp.train.commit import commits, read_tensors
    weights = read_tensors(commits(run)[0], "weight/")
    seen["weights"] = hashlib.sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()

for number, (name, words) in enumerate(json.loads(Path(sys.argv[1]).read_text())):
    seen.clear()
    run = Path(next((word.partition("=")[2] for word in reversed(words) if word.startswith("run_dir=")), "")).absolute()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            main(words)
        observe(run, printed.getvalue().replace(str(run), "RUN"))
    except UserError as error:
        seen["error"] = str(error)
    seen["folder"] = run.name
    Path(f"{sys.argv[1]}.{number}").write_text(json.dumps([name, seen], default=str))
"""


@pytest.fixture(scope="module")
def observed(make_shards, tmp_path_factory) -> dict[tuple[str, str], dict]:
    """(beside, words) -> observations; all runs in one process.  Each reference runs twice: the second time as ("again", beside)."""
    place = tmp_path_factory.mktemp("keys")
    one, other = make_shards(place / "one" / "train", [7, 7]), make_shards(place / "other" / "train", [9])
    square = make_shards(place / "square" / "train", [12], side=32)
    known = {
        "{reference}": str(place / "run0"),
        "{other}": str(other),
        "{square}": str(square),
        "{stream}": f"[{one}/000000.tar,{one}/000001.tar]",
    }
    for number, end in enumerate(("", "2")):
        encoder, codebook = place / f"encoder{end}", place / f"codebook{end}.safetensors"
        known |= {f"{{encoder{end}}}": str(encoder), f"{{codebook{end}}}": str(codebook)}
        model = ModelConfig(arch="vit_tiny_patch16_224", image_size=16, patch_size=4, width=16, depth=2, heads=2)
        write_encoder(encoder, build_encoder(model, number).vit.state_dict(), model, (0.5,) * 3, (0.5,) * 3, f"tiny{end}")
        sizes = ["model={image_size: 16, patch_size: 4}", "data={holdout_samples: 4, crop_scale: [0.5, 1]}", "workers=0", "clusters=5"]
        fit_codebook.main([*sizes, f"data.shards={one}", f"out={codebook}", f"seed={number}"])
    rows = [row for changes in CHANGES.values() for row in changes]
    names = [("", ""), ("again", ""), *((row.beside, "") for row in rows), *((row.beside, row.words) for row in rows)]
    cases = []
    for number, (beside, words) in enumerate(dict.fromkeys(names)):
        text = split("" if beside == "again" else beside) + split(words)
        for name, value in known.items():
            text = [word.replace(name, value) for word in text]
        cases.append(((beside, words), [*BASE, f"data.shards={one}", f"run_dir=run{number}", *text]))
    (place / "cases").write_text(json.dumps(cases))
    done = finish(start([str(place / "cases")], 1, ["-c", MANY], cwd=place))
    assert done.status == [0], done.err[-3000:]
    pairs = [json.loads((place / f"cases.{number}").read_text()) for number in range(len(cases))]
    return {tuple(name): found for name, found in pairs}


def test_every_key_has_a_row():
    assert keys(PretrainConfig) == CHANGES.keys() | ELSEWHERE.keys()


def test_every_key_changes_what_it_says(observed):
    assert "error" not in observed["", ""], observed["", ""]
    apart = {name for name in observed["", ""] if observed["", ""][name] != observed["again", ""].get(name)}
    assert apart <= {"folder"}  # what differs, differs because of the key
    refused = {name: found["error"] for name, found in observed.items() if "error" in found}
    assert refused.keys() == {("", "resume=must"), ("", "resume=7"), ("", LARGE), (LARGE, "")}, refused
    assert not (found := faults(CHANGES, observed)), "\n".join(found)


def test_no_recipe_writes_a_figure_that_the_table_does_not_know(observed):
    written = {name for found in observed.values() for name in found.get("names", [])}
    unknown = {name for name in written if (figure := figure_of(name)) is None or "pretraining" not in figure.by}
    assert not unknown and len(written) > 20, unknown


@pytest.mark.parametrize("decode", ["cpu", "device"])
def test_jpegs_are_decoded_where_system_decode_wants_them(decode, make_shards, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("mpp.data.placement.DeviceJpegs", lambda *words: made.append(words))
    config = load(PretrainConfig, None, [*BASE, f"data.shards={make_shards(tmp_path / 'train', [6])}", f"system.decode={decode}"])
    sets = open_training_set(config)
    placed = sets.placed(config, torch.device("cuda"), 1)
    assert len(made) == (decode == "device") and (placed is sets.training) == (decode == "cpu")
