"""What mpp/replay.py does, top to bottom: a dump of the flight recorder -> where numbers ceased to be finite, and on which images.

OUT/replay.json:
    format 1   dump   step   rank   weights {source, step (after which they are), exact, not_finite [names]}
    same       {samples, masks (of a fine-tuning labels), pixels: true, false, or null where it was not noted}
    precisions {fp32: {loss, gradient_norm (of this rank's share), micro_batch (the one at which it ended), first, first_gradient (or null):
               {name, kind, largest, given_finite}, forward [[name, kind, largest]], backward [likewise]}}
    images     [{view, sample, shown, where, crop [left, top, right, bottom], loss, finite}]: those at fault, or those of the largest loss; of a
               fine-tuning also what mains/replay_job.py says of each (label, what it is mixed with, what is erased)
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
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mpp.base.errors import CheckpointError, ConfigError, DataError
from mpp.base.progress import tracked
from mpp.base.text import counted, say
from mpp.config.finetune import FinetuneConfig
from mpp.config.pretrain import PretrainConfig
from mpp.config.replay import ReplayConfig
from mpp.config.schema import Words, load
from mpp.data.crop_dataset import Batch
from mpp.data.shard_cache import caching
from mpp.disk.files import make_folder, write_atomically
from mpp.mains.replay_job import WEIGHT as OF_WEIGHTS
from mpp.mains.replay_job import FinetuningJob, Inputs, PretrainingJob, ReplayJob
from mpp.monitor.magnitudes import WEIGHT, Magnitudes, Seen, watching
from mpp.train.average import PREFIX
from mpp.train.commit import Commit, asked_commit, commits, read_tensors
from mpp.train.flight import FORMAT, WEIGHTS, pixels_check

NAMED = 6  # dumps that a message names
GIVE = "give RUN/flight/rankN.json of a run that stopped before its end, or RUN/flight/skipped-STEP.rankN.json of a step that was skipped"
LEADING = 8  # modules that are told before the first that went wrong


@dataclass(frozen=True)
class Dump:
    path: Path
    facts: dict[str, Any]
    config: PretrainConfig | FinetuneConfig

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
    late: int  # how many steps have changed them since the step that is replayed had them; negative: so many short of it
    average_late: int = 0  # likewise, of an average that the step learns from

    @property
    def exact(self) -> bool:
        """Whether the step that is replayed had them."""
        return not (self.late or self.average_late)

    @property
    def words(self) -> str:
        """How far they are from what the step had; empty where they are just that."""
        if self.late:
            return f"; {counted(abs(self.late), 'step')} {'behind' if self.late > 0 else 'short of'} it: weights have moved since"
        return f"; the average that it learns from is of {counted(self.average_late, 'step')} later" if self.average_late else ""


@dataclass(frozen=True)
class Pass:
    """Forward and backward, over the micro-batches of the step up to the first that is not finite."""

    loss: float  # the mean over micro-batches so far
    gradient_norm: float  # of this rank's share
    micro_batch: int  # the last one taken
    seen: Magnitudes  # in that
    losses: list[Tensor]  # [B, ...] of each taken

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
    caching.use(config.system.cache, config.system.cache_gb)
    job: ReplayJob = PretrainingJob(config, dump.run_dir) if isinstance(config, PretrainConfig) else FinetuningJob(config, dump.run_dir)
    weights = find_weights(dump, noted, asked.weights, job.learns_from_average)
    batches = batches_again(dump, job, noted)
    same = compared(job, noted, batches)
    say(f"batch     {counted(sum(len(each['sample']) for each in batches), 'view')}, made again: {in_words(same)}")
    say(f"weights   {weights.source}, after step {weights.step}{weights.words}")
    for line in job.remarks(facts):
        say(f"note: {line}")

    model = job.build(weights.tensors, weights.source)
    not_finite = [name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]
    if not_finite:
        more = f" and {len(not_finite) - 1} more hold" if len(not_finite) > 1 else " holds"
        say(f"          of its tensors {not_finite[0]}{more} numbers that are not finite")
    step = Taking(job, model, batches, noted["noise_seed"], facts["accumulation"])
    passes = {name: step.taken(name == "bf16") for name in precisions(asked, config)}
    for name, each in passes.items():
        for line in told(name, each, facts["accumulation"]):
            say(line)
    wrong = next((name for name, each in passes.items() if not each.finite), None)
    views = step.judged(passes[wrong or next(iter(passes))], wrong)
    images = [facts_of(job, batches, view) for view in views[: asked.images]]
    for line in about_images(job, wrong, views, images, weights):
        say(line)

    write_atomically(out / "replay.png", drawn(job, batches, views[: asked.images], images, noted["step"]))
    found = {
        "format": 1,
        "dump": str(dump.path),
        "step": noted["step"],
        "rank": facts["rank"],
        "weights": {"source": weights.source, "step": weights.step, "exact": weights.exact, "not_finite": not_finite},
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
        known = isinstance(facts["format"], int) and isinstance(facts["steps"], list)
    except OSError as error:
        there = sorted(str(found) for found in path.rglob("*rank*.json") if found.parent.name == "flight") if path.is_dir() else []
        give = f"give one of {', '.join(there[:NAMED])}{' ...' if there[NAMED:] else ''}" if there else GIVE
        raise ConfigError(f"cannot read the dump {path} ({error.strerror}); {give}") from error
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise ConfigError(f"{path} is no dump of the flight recorder; {GIVE}")
    if facts["format"] != FORMAT:
        raise ConfigError(
            f"{path} is of another version of mpp: its format is {facts['format']}, and this one reads {FORMAT}; replay it with the one that ran"
        )
    words = [f"{key}={json.dumps(value)}" for key, value in facts["config"].items()]
    moved = lambda key: [f"{key}={json.dumps(shards)}"] if shards else []
    if facts["program"] == "mpp/finetune.py":
        return Dump(path, facts, load(FinetuneConfig, None, [*words, *moved("train")]))
    return Dump(path, facts, load(PretrainConfig, None, [*words, *moved("data.shards")]))


def find_weights(dump: Dump, noted: Mapping[str, Any], asked: str | None, average: bool) -> Weights:
    """Those that the step had, where they are kept; else the nearest.  average: whether it learns from one.  Raises CheckpointError."""
    step = noted["step"]
    if asked is not None:
        commit = asked_commit(Path(asked)) if Path(asked).is_dir() else None
        if commit is None:
            raise CheckpointError(f"weights={asked} is no checkpoint; give a folder of {dump.run_dir}/checkpoints")
        return of_commit(commit, step, average)
    before = next((each for each in commits(dump.run_dir) if each.step < step), None)
    short = step - 1 - (before.step if before else 0)
    kept, file = dump.facts["weights"], dump.path.parent / WEIGHTS
    if kept is None:
        return of_commit(before, step, average)
    # Between weights that were kept and a step behind them all steps were skipped; a step before them changed them unless it was skipped itself.
    late = max(0, kept - step + (not isinstance(noted["gradient_norm"], str)))
    if not (late < short or not (late or average)):
        return of_commit(before, step, average)
    try:
        with safe_open(str(file), "pt") as opened:
            if (opened.metadata() or {}).get("step") != str(kept):  # of a step that was skipped later
                return of_commit(before, step, average)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError:
        return of_commit(before, step, average)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); name a checkpoint with weights=RUN/checkpoints/N") from error
    return Weights(tensors, str(file), kept, late, dump.facts["average"] - (step - 1) if average else 0)


def of_commit(commit: Commit | None, step: int, average: bool) -> Weights:
    """None: as the run began.  Raises CheckpointError."""
    if commit is None:
        return Weights({}, "as the run began", 0, 1 - step)
    commit.verify()
    parts = [OF_WEIGHTS, *([PREFIX] if average else [])]
    tensors = {prefix + name: tensor for prefix in parts for name, tensor in read_tensors(commit, prefix).items()}
    return Weights(tensors, str(commit.folder), commit.step, commit.step - (step - 1))


def batches_again(dump: Dump, job: ReplayJob, noted: Mapping[str, Any]) -> list[Batch]:
    """This rank's micro-batches of the step, those that it had seen.  Raises ConfigError, DataError."""
    facts = dump.facts
    plan = replace(job.plan(facts["world"]), micro_batch=facts["micro_batch"], accumulation=facts["accumulation"])
    keys = list(job.sampler(plan, facts["rank"], facts["world"], noted["step"] - 1))[: len(noted["micro_batches"])]
    asked = [[sample for _, sample, _ in each] for each in keys]
    if asked != [each["samples"] for each in noted["micro_batches"]]:
        raise DataError(f"{job.source} are not the images of {dump.path}: the step had other samples; give the run's own with shards=")
    return [
        job.training.completed(job.training.batch(each)) for each in tracked(keys, "making the batch again", len(keys), "micro-batches")
    ]


def compared(job: ReplayJob, noted: Mapping[str, Any], batches: list[Batch]) -> dict[str, bool | None]:
    """Whether what was made again is what was there; None: it was not noted."""
    pairs = list(zip(noted["micro_batches"], batches, strict=True))
    shown = lambda batch: {
        str(asked): seen for asked, seen in zip(batch["sample"].tolist(), batch["shown"].tolist(), strict=True) if asked != seen
    }
    known = all(each["pixels"] is not None for each, _ in pairs)
    return {
        "samples": all(each["replaced"] == shown(batch) for each, batch in pairs),
        job.drawn: all(each[job.drawn] == job.check(batch) for each, batch in pairs),
        "pixels": all(each["pixels"] == pixels_check(batch["image"]) for each, batch in pairs) if known else None,
    }


def in_words(same: Mapping[str, bool | None]) -> str:
    agree, differ = [name for name, each in same.items() if each], [name for name, each in same.items() if each is False]
    parts = ([f"{', '.join(agree)} are those of the run"] if agree else []) + ([f"{', '.join(differ)} DIFFER"] if differ else [])
    return "; ".join(parts) + ("; pixels were cut on a device, and may differ by a level" if same["pixels"] is None else "")


def precisions(asked: ReplayConfig, config: PretrainConfig | FinetuneConfig) -> list[str]:
    return [asked.precision] if asked.precision else list(dict.fromkeys(["fp32", config.system.precision]))


@dataclass(frozen=True)
class Taking:
    """A step that is taken again."""

    job: ReplayJob
    model: nn.Module
    batches: list[Batch]
    noise_seed: int
    accumulation: int

    def taken(self, bf16: bool) -> Pass:
        """The step's forward and backward passes, as the run takes them; they end behind the first micro-batch that is not finite."""
        self._begin()
        total, losses = 0.0, []
        for batch in tracked(self.batches, "taking the step", len(self.batches), "micro-batches"):
            with watching(self.job.nets(self.model)) as seen:
                loss, mean = self._forward(self.job.inputs(batch), bf16)
                (mean / self.accumulation).backward()
            total += float(mean.detach())
            losses.append(loss.detach())
            norm = self._gradient_norm()
            if not (math.isfinite(total) and math.isfinite(norm)):
                break
        return Pass(total / len(losses), norm, len(losses) - 1, seen, losses)

    def judged(self, pass_: Pass, wrong: str | None) -> list[View]:
        """wrong: in which precision; then each image of the micro-batch at fault alone, those that are not finite first.  Else by their loss, the largest
        first."""
        if wrong is None:
            views = [
                View(number, row, float(loss[row].mean()), True) for number, loss in enumerate(pass_.losses) for row in range(len(loss))
            ]
            return sorted(views, key=lambda view: -view.loss)
        number, views = pass_.micro_batch, []
        inputs = self.job.inputs(self.batches[number])
        for row in tracked(range(len(inputs[0])), "looking at each image alone", len(inputs[0]), "images"):
            self._begin()
            loss, mean = self._forward(tuple(each[row : row + 1] for each in inputs), wrong == "bf16")
            mean.backward()
            alone = float(loss.mean().detach())
            views.append(View(number, row, alone, math.isfinite(alone) and math.isfinite(self._gradient_norm())))
        return sorted(views, key=lambda view: view.finite)

    def _begin(self) -> None:
        self.model.zero_grad(set_to_none=True)
        torch.manual_seed(self.noise_seed)

    def _forward(self, inputs: Inputs, bf16: bool) -> tuple[Tensor, Tensor]:
        """The loss of each view [B, ...], and what is learned from."""
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, own = self.job.loss(self.model, inputs)
        return loss, loss.mean() + own

    def _gradient_norm(self) -> float:
        return float(nn.utils.get_total_norm([each.grad for each in self.model.parameters() if each.grad is not None]))


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


def about_images(job: ReplayJob, wrong: str | None, views: list[View], images: list[dict[str, Any]], weights: Weights) -> list[str]:
    at_fault = [view for view in views if not view.finite]

    def name(each: dict[str, Any]) -> str:
        words = f", {caption}" if (caption := job.caption(each)) else ""
        return f"          sample {each['sample']}: {each['where']}, crop {each['crop']}{words}, loss {as_word(each['loss'])}"

    if wrong is None:
        lines = []
        if not weights.exact:
            lines.append(
                f"finite    with the weights of step {weights.step} all is finite: they are not those of the step; a checkpoint nearer to it would tell more"
            )
        return [*lines, "images    those of the largest loss:", *map(name, images[:3])]
    if not at_fault:
        return ["images    each is finite alone: it takes the batch together"]
    if len(at_fault) == len(views):
        return [f"images    all {len(views)}, each alone: the weights are at fault, not an image (a learning rate that is too high)"]
    return [f"images    {len(at_fault)} of {len(views)} are not finite alone:", *map(name, images[: len(at_fault)])]


def facts_of(job: ReplayJob, batches: list[Batch], view: View) -> dict[str, Any]:
    batch = batches[view.micro_batch]
    shown = int(batch["shown"][view.row])
    return {
        "view": [view.micro_batch, view.row],
        "sample": int(batch["sample"][view.row]),
        "shown": shown,
        "where": job.where(shown),
        "crop": batch["box"][view.row].tolist(),
        "loss": in_json(view.loss),
        "finite": view.finite,
        **job.about(batch, view.row),
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


def drawn(job: ReplayJob, batches: list[Batch], views: list[View], images: list[dict[str, Any]], step: int) -> bytes:
    """A PNG: the crops as the model was given them; of pretraining less their pose."""
    pictures = {number: job.pictures(batches[number]) for number in {view.micro_batch for view in views}}
    columns = min(4, len(views))
    rows = -(-len(views) // columns)
    figure = Figure(figsize=(3.2 * columns, 0.6 + 3.7 * rows), layout="constrained")
    all_finite = all(view.finite for view in views)
    figure.suptitle(f"step {step}: {'images of the largest loss' if all_finite else 'images of the batch, those at fault first'}")
    for place, (view, facts) in enumerate(zip(views, images, strict=True)):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(pictures[view.micro_batch][view.row].permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        left, top, right, bottom = facts["crop"]
        crop = f"crop {right - left} x {bottom - top} px at ({left}, {top})"
        fault = "" if view.finite else ", not finite"
        lines = [f"sample {facts['sample']}, loss {as_word(facts['loss'])}{fault}", facts["where"], crop, job.caption(facts)]
        axes.set_title("\n".join(filter(None, map(shortened, lines))), fontsize=8)
    return png(figure)


def shortened(where: str, most: int = 44) -> str:
    return where if len(where) <= most else "..." + where[3 - most :]


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
