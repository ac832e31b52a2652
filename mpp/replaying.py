"""What mpp/replay.py does, top to bottom: a dump of the flight recorder -> where numbers ceased to be finite, and on which images.

OUT/replay.json:
    format 1   dump   step   rank   weights {source, step, exact}   same {samples, masks, pixels: true, false, or null where it was not noted}
    precisions {fp32: {loss, gradient_norm (of this rank's share), micro_batch (the one at which it ended), first, first_gradient (or null):
               {name, kind, largest, given_finite}, forward [[name, kind, largest]], backward [likewise]}}
    images     [{view, sample, shown, where, crop [left, top, right, bottom], loss, finite}]: those at fault, or those of the largest loss
Numbers that are not finite are the words nan and inf.
"""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mpp.config.pretrain import PretrainConfig
from mpp.config.replay import ReplayConfig
from mpp.config.schema import Words, load
from mpp.data.crop_dataset import Batch
from mpp.data.order import BatchPlan, OrderSampler, plan_batch
from mpp.data.shard_cache import caching
from mpp.data.streams import refuse_stream
from mpp.data.training_set import TrainingSet, open_training_set
from mpp.errors import CheckpointError, ConfigError, DataError
from mpp.files import make_folder, write_atomically
from mpp.interop.lent import bring
from mpp.interop.start_from import initialise_from
from mpp.model.tokens import fuses_attention
from mpp.monitor.magnitudes import WEIGHT, Magnitudes, Seen, watching
from mpp.progress import tracked
from mpp.recipe.model import PretrainingModel, build_model
from mpp.recipe.teacher import TeacherKnobs
from mpp.text import counted, say
from mpp.train.average import PREFIX
from mpp.train.commit import Commit, commits, read_commit, read_tensors
from mpp.train.flight import FORMAT, WEIGHTS, masks_check, pixels_check
from mpp.train.step import masked_images
from mpp.train.teacher import teacher_of

LEADING = 8  # modules that are told before the first that went wrong
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Dump:
    path: Path
    facts: dict[str, Any]
    config: PretrainConfig

    @property
    def run_dir(self) -> Path:
        return self.path.parent.parent

    def chosen(self, step: int | None) -> dict[str, Any]:
        """The step that is asked for.  Raises ConfigError for one that is not there."""
        steps = [each for each in self.facts["steps"] if each["micro_batches"]]
        if not steps:
            raise ConfigError(f"{self.path}: no step had seen a batch yet; there is nothing to replay")
        if step is None:
            wrong = lambda each: any(isinstance(each[name], str) for name in ("loss", "gradient_norm"))
            taken = [each for each in steps if wrong(each) and len(each["micro_batches"]) == self.facts["accumulation"]]
            return taken[0] if taken else steps[-1]
        found = next((each for each in steps if each["step"] == step), None)
        if found is None:
            raise ConfigError(f"step={step} is not in {self.path}; there are {steps[0]['step']} to {steps[-1]['step']}")
        return found


@dataclass(frozen=True)
class Weights:
    tensors: Mapping[str, Tensor]  # weight/NAME, and ema/NAME of a teacher; empty: as the run began
    source: str
    step: int  # after which they are
    exact: bool  # whether the step that is replayed had them


@dataclass(frozen=True)
class Pass:
    """Forward and backward, over the micro-batches of the step up to the first that is not finite."""

    loss: float  # the mean over micro-batches so far
    gradient_norm: float  # of this rank's share
    micro_batch: int  # the last one taken
    seen: Magnitudes  # in that
    losses: list[Tensor]  # [B, M] of each taken

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


@dataclass(frozen=True)
class View:
    """One image of the batch."""

    micro_batch: int
    row: int
    loss: float
    finite: bool  # by itself: its loss and its gradient


def replay(asked: ReplayConfig) -> int:
    """Raises UserError."""
    dump = read_dump(Path(asked.dump), asked.shards)
    facts, config, noted = dump.facts, dump.config, dump.chosen(asked.step)
    out = Path(asked.out) if asked.out else dump.path.parent
    make_folder(out, "out")
    world = facts["world"]
    say(f"dump      {dump.path}: {facts['why']}")
    say(
        f"step      {noted['step']} (samples {noted['samples'][0]}:{noted['samples'][1]} of the run), rank {facts['rank']} of {world}, learning rate "
        f"{noted['learning_rate']:.3g}; then: loss {as_word(noted['loss'])}, gradient norm {as_word(noted['gradient_norm'])}"
    )
    refuse_stream(config.data.shards, "what a step of a run on one has seen cannot be read again: there is no order in it")
    caching.use(config.system.cache, config.system.cache_gb)
    sets = open_training_set(config)
    weights = find_weights(dump, noted["step"], asked.weights)
    batches = batches_again(dump, sets, noted)
    same = compared(noted, batches)
    say(f"batch     {counted(sum(len(each['sample']) for each in batches), 'view')}, made again: {in_words(same)}")
    moved = "" if weights.exact else f"; {counted(noted['step'] - 1 - weights.step, 'step')} short of it: weights have moved since"
    say(f"weights   {weights.source}, after step {weights.step}{moved}")
    for line in remarks(dump):
        say(f"note: {line}")

    model = model_at(config, weights, sets)
    passes = {name: taken(model, batches, noted["noise_seed"], facts["accumulation"], name == "bf16") for name in precisions(asked, config)}
    for name, each in passes.items():
        for line in told(name, each, facts["accumulation"]):
            say(line)
    wrong = next((name for name, each in passes.items() if not each.finite), None)
    views = judged(model, batches, passes[wrong or next(iter(passes))], noted["noise_seed"], wrong)
    images = [facts_of(sets, batches, view) for view in views[: asked.images]]
    for line in about_images(wrong, views, images, batches, weights):
        say(line)

    write_atomically(out / "replay.png", drawn(batches, views[: asked.images], images, noted["step"]))
    found = {
        "format": 1,
        "dump": str(dump.path),
        "step": noted["step"],
        "rank": facts["rank"],
        "weights": {"source": weights.source, "step": weights.step, "exact": weights.exact},
        "same": same,
        "precisions": {name: as_facts(each) for name, each in passes.items()},
        "images": images,
    }
    write_atomically(out / "replay.json", (json.dumps(found) + "\n").encode())
    say(f"written   {out}/replay.json and {out}/replay.png")
    return 0


def read_dump(path: Path, shards: Words | None) -> Dump:
    """shards: where those of the run lie now.  Raises ConfigError."""
    try:
        facts = json.loads(path.read_text())
        known = facts["format"] == FORMAT and isinstance(facts["steps"], list)
    except OSError as error:
        raise ConfigError(
            f"cannot read the dump {path} ({error.strerror}); give RUN/flight/rankN.json of a run that stopped before its end"
        ) from error
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ConfigError(f"{path} is no dump of the flight recorder; give RUN/flight/rankN.json of a run that stopped before its end")
    if facts["program"] != "mpp/pretrain.py":
        raise ConfigError(f"{path} is of {facts['program']}; only steps of mpp/pretrain.py are replayed")
    words = [f"{key}={json.dumps(value)}" for key, value in facts["config"].items()]
    return Dump(path, facts, load(PretrainConfig, None, [*words, *([f"data.shards={json.dumps(shards)}"] if shards else [])]))


def find_weights(dump: Dump, step: int, asked: str | None) -> Weights:
    """Those that the step had, where they are kept; else the newest before it.  Raises CheckpointError."""
    kept, file = dump.facts["weights"], dump.path.parent / WEIGHTS
    if asked is None and kept is not None and step > kept and file.exists():
        try:
            return Weights(load_file(str(file)), str(file), kept, exact=True)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read ({error}); name a checkpoint with weights=RUN/checkpoints/N") from error
    commit: Commit | None = None
    if asked is not None:
        commit = read_commit(Path(asked)) if Path(asked).is_dir() else None
        if commit is None:
            raise CheckpointError(f"weights={asked} is no checkpoint; give a folder of {dump.run_dir}/checkpoints")
    else:
        commit = next((each for each in commits(dump.run_dir) if each.step < step), None)
    if commit is None:
        return Weights({}, "as the run began", 0, exact=step == 1)
    commit.verify()
    parts = ["weight/", *([PREFIX] if isinstance(dump.config.target, TeacherKnobs) else [])]
    tensors = {prefix + name: tensor for prefix in parts for name, tensor in read_tensors(commit, prefix).items()}
    return Weights(tensors, str(commit.folder), commit.step, exact=commit.step == step - 1)


def batches_again(dump: Dump, sets: TrainingSet, noted: Mapping[str, Any]) -> list[Batch]:
    """This rank's micro-batches of the step, those that it had seen.  Raises ConfigError, DataError."""
    facts, data = dump.facts, dump.config.data
    usual = plan_batch(data.global_batch, data.streams, facts["world"], dump.config.system.micro_batch_max, data.views)
    plan: BatchPlan = replace(usual, micro_batch=facts["micro_batch"], accumulation=facts["accumulation"])
    done = noted["step"] - 1
    sampler = OrderSampler(sets.order(dump.config, plan), plan, facts["rank"], facts["world"], done, done + 1)
    keys = list(sampler)[: len(noted["micro_batches"])]
    asked = [[sample for _, sample, _ in each] for each in keys]
    if asked != [each["samples"] for each in noted["micro_batches"]]:
        raise DataError(
            f"{sets.trained_on.path} are not the images of {dump.path}: the step had other samples; give the run's own with shards="
        )
    return [
        sets.training.completed(sets.training.batch(each)) for each in tracked(keys, "making the batch again", len(keys), "micro-batches")
    ]


def compared(noted: Mapping[str, Any], batches: list[Batch]) -> dict[str, bool | None]:
    """Whether what was made again is what was there; None: it was not noted."""
    pairs = list(zip(noted["micro_batches"], batches, strict=True))
    shown = lambda batch: {
        str(asked): seen for asked, seen in zip(batch["sample"].tolist(), batch["shown"].tolist(), strict=True) if asked != seen
    }
    known = all(each["pixels"] is not None for each, _ in pairs)
    return {
        "samples": all(each["replaced"] == shown(batch) for each, batch in pairs),
        "masks": all(each["masks"] == masks_check(batch) for each, batch in pairs),
        "pixels": all(each["pixels"] == pixels_check(batch["image"]) for each, batch in pairs) if known else None,
    }


def in_words(same: Mapping[str, bool | None]) -> str:
    agree, differ = [name for name, each in same.items() if each], [name for name, each in same.items() if each is False]
    parts = ([f"{', '.join(agree)} are those of the run"] if agree else []) + ([f"{', '.join(differ)} DIFFER"] if differ else [])
    return "; ".join(parts) + ("; pixels were cut on a device, and may differ by a level" if same["pixels"] is None else "")


def remarks(dump: Dump) -> list[str]:
    """What a replay cannot bring back."""
    found = []
    if dump.facts["device"] != "cpu" and (dump.config.model.drop_path or getattr(dump.config.decoder, "drop_path", 0)):
        found.append("stochastic depth drew its numbers on a GPU; here other paths are dropped")
    if dump.facts["world"] > 1 and dump.config.target.name == "clusters":
        found.append("target.name=clusters looks at the batches of all ranks; here only this rank's is there")
    return found


def model_at(config: PretrainConfig, weights: Weights, sets: TrainingSet) -> PretrainingModel:
    """In training mode, its teacher lent where it has one.  Raises CheckpointError for weights of another model."""
    fused = fuses_attention(config.system)
    model = build_model(config, fused, bring(config, sets.manifests["shards"], fused).lent)
    if not weights.tensors and config.init_from:
        initialise_from(model, config)
    teacher = teacher_of(model, config)
    if weights.tensors:
        put(weights, "weight/", model)
        if teacher:
            put(weights, PREFIX, teacher.net)
    return model.train()


@torch.no_grad()
def put(weights: Weights, prefix: str, net: torch.nn.Module) -> None:
    """In place.  Raises CheckpointError for weights of another model."""
    ours = dict(net.named_parameters())
    theirs = {name.removeprefix(prefix): value for name, value in weights.tensors.items() if name.startswith(prefix)}
    if other := sorted(
        name for name in ours.keys() | theirs.keys() if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape
    ):
        raise CheckpointError(
            f"{weights.source} is of another model ({other[0]} and {len(other) - 1} more differ); give a checkpoint of the run itself"
        )
    for name, parameter in ours.items():
        parameter.copy_(theirs[name])


def precisions(asked: ReplayConfig, config: PretrainConfig) -> list[str]:
    return [asked.precision] if asked.precision else list(dict.fromkeys(["fp32", config.system.precision]))


def nets(model: PretrainingModel) -> list[tuple[str, torch.nn.Module]]:
    return [("", model), *([("teacher.", model.teacher.net)] if model.teacher else [])]


def taken(model: PretrainingModel, batches: list[Batch], noise: int, accumulation: int, bf16: bool) -> Pass:
    """The step's forward and backward passes, as the run takes them; they end behind the first micro-batch that is not finite."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(noise)
    total, losses = 0.0, []
    for batch in tracked(batches, "taking the step", len(batches), "micro-batches"):
        with watching(nets(model)) as seen:
            loss, own = forward(model, inputs_of(batch), bf16)
            mean = loss.mean() + own
            (mean / accumulation).backward()
        total += float(mean.detach())
        losses.append(loss.detach())
        norm = gradient_norm(model)
        if not (math.isfinite(total) and math.isfinite(norm)):
            break
    return Pass(total / len(losses), norm, len(losses) - 1, seen, losses)


def inputs_of(batch: Batch) -> Inputs:
    return masked_images(batch, torch.device("cpu"))


def forward(model: PretrainingModel, inputs: Inputs, bf16: bool) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        _, loss, _, own = model(*inputs)
    return loss, own


def gradient_norm(model: PretrainingModel) -> float:
    return float(torch.nn.utils.get_total_norm([each.grad for each in model.parameters() if each.grad is not None]))


def judged(model: PretrainingModel, batches: list[Batch], pass_: Pass, noise: int, wrong: str | None) -> list[View]:
    """wrong: in which precision; then each image of the micro-batch at fault alone, those that are not finite first.  Else by their loss, the largest
    first."""
    if wrong is None:
        views = [View(number, row, float(loss[row].mean()), True) for number, loss in enumerate(pass_.losses) for row in range(len(loss))]
        return sorted(views, key=lambda view: -view.loss)
    number, views = pass_.micro_batch, []
    inputs = inputs_of(batches[number])
    for row in tracked(range(len(inputs[0])), "looking at each image alone", len(inputs[0]), "images"):
        model.zero_grad(set_to_none=True)
        torch.manual_seed(noise)
        alone: Any = tuple(each[row : row + 1] for each in inputs)
        loss, own = forward(model, alone, wrong == "bf16")
        (loss.mean() + own).backward()
        mean = float(loss.mean().detach())
        views.append(View(number, row, mean, math.isfinite(mean) and math.isfinite(gradient_norm(model))))
    return sorted(views, key=lambda view: view.finite)


def told(name: str, found: Pass, micro_batches: int) -> list[str]:
    """Lines for people."""
    highest = found.seen.highest
    head = f"{name:10}loss {found.loss:.4g}, gradient norm {found.gradient_norm:.4g}"
    if found.finite:
        return [f"{head}; all is finite, the largest output {highest.largest:.3g} ({called(highest)})"]
    lines = [f"{head}" + (f", in micro-batch {found.micro_batch + 1} of {micro_batches}" if micro_batches > 1 else "")]
    output, gradient = found.seen.first, found.seen.first_back
    first = output or gradient
    if first is None:
        steepest = max(found.seen.backward, key=lambda seen: seen.largest)
        words = f"the largest output {highest.largest:.3g} ({called(highest)}), the largest gradient {steepest.largest:.3g} ({called(steepest)})"
        return [*lines, f"          each number is finite, the norm of all gradients together is not; {words}"]
    between = "" if first.given_finite else "; what it was given was not finite already, and comes from what is computed between modules"
    what = "output" if output else "gradient of a weight" if first.kind == WEIGHT else "gradient of an output"
    lines.append(f"          the first {what} that is not finite: {called(first)}{between}")
    lines.append("          leading there, largest absolute values:")
    return lines + [f"          {each.largest:>10.3g}  {called(each)}" for each in found.seen.before(first, LEADING)]


def called(seen: Seen) -> str:
    return f"{seen.name} ({seen.kind})" if seen.name else "the whole model with its loss"


def about_images(wrong: str | None, views: list[View], images: list[dict[str, Any]], batches: list[Batch], weights: Weights) -> list[str]:
    at_fault = [view for view in views if not view.finite]
    name = lambda each: f"          sample {each['sample']}: {each['where']}, crop {each['crop']}, loss {as_word(each['loss'])}"
    if wrong is None:
        lines = []
        if not weights.exact:
            lines.append(
                f"finite    with the weights of step {weights.step} all is finite: they have moved since; a checkpoint nearer to the step would tell more"
            )
        return [*lines, "images    those of the largest loss:", *map(name, images[:3])]
    if not at_fault:
        return ["images    each is finite alone: it takes the batch together"]
    if len(at_fault) == len(views):
        return [f"images    all {len(views)}, each alone: the weights are at fault, not an image (a learning rate that is too high)"]
    return [f"images    {len(at_fault)} of {len(views)} are not finite alone:", *map(name, images[: len(at_fault)])]


def facts_of(sets: TrainingSet, batches: list[Batch], view: View) -> dict[str, Any]:
    batch = batches[view.micro_batch]
    shown = int(batch["shown"][view.row])
    return {
        "view": [view.micro_batch, view.row],
        "sample": int(batch["sample"][view.row]),
        "shown": shown,
        "where": sets.trained_on.where(shown),
        "crop": batch["box"][view.row].tolist(),
        "loss": in_json(view.loss),
        "finite": view.finite,
    }


def as_facts(found: Pass) -> dict[str, Any]:
    one = lambda seen: (
        seen
        and {
            "name": seen.name,
            "kind": seen.kind,
            "largest": in_json(seen.largest),
            "given_finite": seen.given_finite,
        }
    )
    rows = lambda course: [[each.name, each.kind, in_json(each.largest)] for each in course]
    seen: dict[str, Seen | None] = {"first": found.seen.first, "first_gradient": found.seen.first_back}
    return {
        "loss": in_json(found.loss),
        "gradient_norm": in_json(found.gradient_norm),
        "micro_batch": found.micro_batch,
        **{name: one(each) for name, each in seen.items()},
        "forward": rows(found.seen.forward),
        "backward": rows(found.seen.backward),
    }


def in_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def as_word(value: float | str | None) -> str:
    """Of a figure in a dump."""
    return "not known" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def drawn(batches: list[Batch], views: list[View], images: list[dict[str, Any]], step: int) -> bytes:
    """A PNG: the crops as the model was given them, less their pose."""
    columns = min(4, len(views))
    rows = -(-len(views) // columns)
    figure = Figure(figsize=(3.2 * columns, 0.6 + 3.7 * rows), layout="constrained")
    all_finite = all(view.finite for view in views)
    figure.suptitle(f"step {step}: {'images of the largest loss' if all_finite else 'images of the batch, those at fault first'}")
    for place, (view, facts) in enumerate(zip(views, images, strict=True)):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(batches[view.micro_batch]["image"][view.row].permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        left, top, right, bottom = facts["crop"]
        crop = f"crop {right - left} x {bottom - top} px at ({left}, {top})"
        fault = "" if view.finite else ", not finite"
        axes.set_title(f"sample {facts['sample']}, loss {as_word(facts['loss'])}{fault}\n{shortened(facts['where'])}\n{crop}", fontsize=8)
    return png(figure)


def shortened(where: str, most: int = 44) -> str:
    return where if len(where) <= most else "..." + where[3 - most :]


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
