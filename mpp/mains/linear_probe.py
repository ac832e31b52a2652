"""What mpp/linear_probe.py does, top to bottom.

Every hyper-parameter comes from a hold-out of train; the test split is read once, at the end, and each read is logged.  Without test= the
figures are on a further hold-out of train that no choice has seen.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from mpp.base.progress import Progress, tracked
from mpp.base.text import sized
from mpp.config.probe import ProbeConfig
from mpp.data.labelled import LabelledImages, remarks_on
from mpp.disk.files import write_atomically
from mpp.mains.probe_job import PROGRAM, Probing, Reported, prepare, state_memory, undone
from mpp.mains.probe_report import write
from mpp.monitor import rank
from mpp.processes.watch import watch
from mpp.processes.world import from_all, from_first, leave, to_first, together
from mpp.transfer.extraction import Extracted
from mpp.transfer.extractors import PixelExtractor
from mpp.transfer.ledger import log_test_read
from mpp.transfer.near_duplicates import PICTURE, find_near, sheet
from mpp.transfer.overlap import Overlap, find_overlap
from mpp.transfer.probes.contract import Measured, Probe, Train
from mpp.transfer.probes.divided import DividedProbe, Searched, find
from mpp.transfer.protocol import AllAnswers, answers_to, choose, chosen_words, may_choose, report
from mpp.transfer.rows import Line, majority
from mpp.transfer.split import RANK, subset
from mpp.transfer.table import MAJORITY, PRETRAINED


def probe(config: ProbeConfig, words: Sequence[str]) -> int:
    """Measure and write results.json; words: the command line, to be noted.  Raises UserError."""
    started = time.perf_counter()
    job = prepare(config, words)
    for remark in [] if config.rank_only else [*remarks_on(job.train, job.test), *undone(job)]:
        job.say(f"note      {remark}")

    if not config.extract_only:
        state_memory(job)
    tables = job.extract(job.train, job.samples)
    for name, table in tables.items():
        job.say(f"train     {config.train}: {table}: {name}")
    for name, row in job.rows.items():
        if isinstance(row.extractor, PixelExtractor):
            row.own = row.extractor.told_apart(tables[name].features.values)
            row.about["features"] = str(row.own)

    if config.extract_only:
        return store(job, tables)

    # Everything is chosen on train.
    if job.division.splits:
        choose_rows(job, tables)
    watch.moved("reporting", slow=True)
    spread_rows(job, tables)

    # Only now are the images looked at on which figures are reported.
    shown = None if config.rank_only else show(job, tables)
    if shown is not None:
        report_rows(job, shown)
    if job.world.first:
        with Progress("writing the table and pictures", at_once=True):
            write(job, shown, started)
    return leave()


def store(job: Probing, tables: Mapping[str, Extracted]) -> int:
    """Collective: the features of test, too, which no figure is computed of, so that nobody has read it; then all is there."""
    if job.test is not None:
        for name, table in job.extract(job.test, tested(job)).items():
            job.say(f"test      {job.config.test}: {table}: {name}")
    size = sum(table.features.values.nbytes for table in tables.values())
    job.say(f"features lie in {job.cache} (of train {sized(size)}); the same command without extract_only=true probes them")
    return leave()


def tested(job: Probing) -> np.ndarray:
    """int64, ids of test: the images used."""
    assert job.test is not None
    return subset(len(job.test), job.config.test_samples, job.config.seed, 1)


def choose_rows(job: Probing, tables: Mapping[str, Extracted]) -> None:
    """Collective.  First all processes search together where a probe's search can be divided; then probes on features are dealt out, and each is fitted by
    one process; those with the encoder in the loop are fitted by all together."""
    config, world, splits = job.config, job.world, job.division.splits
    job.about |= {"fit_images": len(splits[0].fit), "holdout_images": len(splits[0].choose), "classes": job.train.classes}

    def train_of(name: str, number: int) -> Train:
        row, seed = job.rows[name], config.seed + number
        views = row.views(job.train, job.samples, config.features, seed, world)
        return Train(
            tables[name].features, row.own, job.labels, job.train.classes, splits[number], seed, world.device,
            config.metric, config.class_weight == "balanced", config.widen, views=views,
        )  # fmt: skip

    again = lambda number: f", repeat {number + 1} of {len(splits)}" if len(splits) > 1 else ""
    units, divided = units_of(job), [probe for probe in config.cached() if isinstance(probe, DividedProbe)]
    mine = units[world.rank :: world.size]
    online = {name: config.online() if row.encoder is not None else [] for name, row in job.rows.items()}
    asked = len(mine) + len(splits) * (len(divided) * len(job.rows) + sum(len(probes) for probes in online.values()))
    with Progress("", asked, "probes", at_once=True) as bar:

        def search(probe: DividedProbe) -> dict[tuple[str, int, str], Searched]:
            """Collective: for all rows and repeats side by side."""
            places = [(name, number) for number in range(len(splits)) for name in job.rows]

            def begins(at: int) -> None:
                name, number = places[at]
                watch.moved(f"choosing for {name}{again(number)}", slow=True)
                bar.update(0, f"{name}{again(number)}")

            def share(work: Callable[[], Any]) -> list[Any]:
                with Progress(probe.title, at_once=True):
                    done = together(world, work)
                return from_all(world, done)

            searches = [probe.search(may_choose(probe, train_of(name, number), job.rows[name].backbone)) for name, number in places]
            found = find(searches, world.rank, world.size, share, begins)
            bar.update(len(found))
            return {(name, number, probe.key): one for (name, number), one in zip(places, found, strict=True)}

        searched = {unit: one for probe in divided for unit, one in search(probe).items()}

        def fit_mine() -> dict[tuple[str, int, str], tuple[list[str], dict[str, float]]]:
            said = {}
            for probe, number, name in mine:
                watch.moved(f"choosing for {name}{again(number)}", slow=True)
                bar.update(0, f"{name}{again(number)}")
                before = searched.get((name, number, probe.key))
                found = choose([probe], train_of(name, number), job.rows[name].backbone, bar.update, before)
                job.rows[name].chosen[number, probe.key] = found
                said[name, number, probe.key] = [each.summary() for each in found.fitted.values()], found.seconds
            return said

        parts = to_first(world, together(world, fit_mine), len(units))
        said = {unit: words for part in parts for unit, words in part.items()}
        for number in range(len(splits)):
            for name, row in job.rows.items():
                watch.moved(f"choosing for {name}{again(number)}", slow=True)
                if world.first:
                    each = [said[name, number, probe.key] for probe in config.cached()]
                    summaries = [summary for summaries, _ in each for summary in summaries]
                    job.say(
                        f"chosen    {name}{again(number)}: {chosen_words(summaries, dict(took for _, seconds in each for took in seconds.items()))}"
                    )
                for probe in online[name]:
                    found = choose([probe], train_of(name, number), row.backbone, bar.update)
                    row.chosen[number, probe.key] = found
                    job.say(f"trained   {name}{again(number)}: {found.fitted[probe.key].summary()}")


def units_of(job: Probing) -> list[tuple[Probe, int, str]]:
    """What processes are dealt, one after the other: each probe on features (those that take longest first), each repeat, each row."""
    return [(probe, number, name) for probe in job.config.cached() for number in range(len(job.division.splits)) for name in job.rows]


def spread_rows(job: Probing, tables: Mapping[str, Extracted]) -> None:
    """What is known of the features without a label; of several seeds, the first one's."""
    pool = job.division.pool
    ranked = torch.from_numpy(pool[subset(len(pool), job.config.rank_samples, job.config.seed, RANK)])
    job.about["rank_images"] = len(ranked)
    for name, row in tracked(job.rows.items(), "feature rank", len(job.rows), "rows", at_once=True):
        if job.world.first and row.line not in job.lines:
            found = rank.spread(tables[name].features.of(row.own)[ranked].to(job.world.device))
            job.lines[row.line] = Line(row.about, {"feature_rank": found})


def show(job: Probing, tables: dict[str, Extracted]) -> Reported:
    """Collective: the test split, whose read is logged before it happens, or rows of train that are held out."""
    config, test, reported = job.config, job.test, job.division.reported
    if test is None:
        job.about |= {"reported_on": "holdout of train", "test_reads": 0, "test_reads_folders": 0, "reported_images": len(reported)}
        job.overlap = together(job.world, lambda: seen_before(job, job.train, job.samples[reported]) if job.world.first else None)
        return Reported(job.train, job.samples, reported, tables)
    ids = tested(job)
    command = [PROGRAM, *job.words]
    note = partial(log_test_read, job.out, test, len(ids), ledger=config.ledger, command=command, encoder=job.loaded.source)
    job.reads = from_first(job.world, lambda: note(named=str(config.test)))
    job.overlap = together(job.world, lambda: seen_before(job, test, ids) if job.world.first else None)
    seen = job.extract(test, ids)
    job.say(f"test      {config.test}: {seen[PRETRAINED]}")
    job.about |= {
        "reported_on": "test",
        "test_reads": job.reads.times,
        "test_reads_folders": job.reads.folders,
        "reported_images": len(ids),
    }
    return Reported(test, ids, np.arange(len(ids)), seen)


def seen_before(job: Probing, images: LabelledImages, ids: np.ndarray) -> Overlap:
    """Of these images (int64 [m], ids), on which figures will be."""
    split, limit = job.division.splits[0], job.config.near_duplicates
    chosen_on = job.samples[split.fit], job.samples[split.choose]
    fitted = job.samples[job.division.pool]
    with Progress("images seen before", at_once=True):
        found = find_overlap(images, ids, job.train, fitted, [job.config.encoder, *job.config.beside], chosen_on)
    if limit is None:
        return found
    with Progress("images that look nearly alike", at_once=True):
        near = find_near(images, ids, job.train, fitted, limit, found.train, job.world.device)
        write_atomically(job.out / PICTURE, sheet(near, images, job.train))
    return replace(found, near=near)


def report_rows(job: Probing, shown: Reported) -> None:
    """Collective: each process answers for what it has fitted."""
    config, world, repeats = job.config, job.world, range(len(job.division.splits))
    images_of = lambda name: Measured(
        shown.tables[name].features, shown.rows, job.rows[name].views(shown.images, shown.samples, config.features, config.seed, world)
    )
    mine = units_of(job)[world.rank :: world.size]

    def answer_mine() -> dict[tuple[str, int, str], tuple[AllAnswers, dict[str, float]]]:
        given = {}
        for probe, number, name in tracked(mine, "answering", len(mine), "probes", at_once=True):
            watch.moved(f"answering for {name}", slow=True)
            found = job.rows[name].chosen[number, probe.key]
            given[name, number, probe.key] = answers_to(found, images_of(name)), found.seconds
        return given

    parts = to_first(world, together(world, answer_mine), len(units_of(job)))
    given = {unit: one for part in parts for unit, one in part.items()}
    for name, row in job.rows.items():
        for number in repeats:
            for probe in config.online() if row.encoder is not None else []:
                found = row.chosen[number, probe.key]
                given[name, number, probe.key] = answers_to(found, images_of(name)), found.seconds
    if not world.first:
        return
    probes = (*config.cached(), *config.online())
    said: dict[str, list[list[AllAnswers]]] = {}
    took: dict[str, dict[str, float]] = {}
    for name, row in job.rows.items():
        of_repeat = [[given[name, number, probe.key] for probe in probes if (name, number, probe.key) in given] for number in repeats]
        said.setdefault(row.line, []).append(
            [{column: one for answers, _ in each for column, one in answers.items()} for each in of_repeat]
        )
        for _, seconds in (one for each in of_repeat for one in each):
            for key, more in seconds.items():
                took.setdefault(row.line, {})[key] = took.get(row.line, {}).get(key, 0.0) + more
    truth, classes = shown.truth, job.train.classes
    for name, runs in tracked(said.items(), "figures", len(said), "rows"):
        line = job.lines[name]
        figures, line.answers = report(runs, truth, len(classes))
        line.figures |= figures
        line.figures["seconds"] = {key: round(spent, 3) for key, spent in took[name].items()}
    job.lines = {MAJORITY: majority(truth, classes)} | job.lines
    where = f"a hold-out of train ({len(shown.rows)} images that nothing was fitted or chosen on); no test split was read"
    if job.reads is not None:
        where = f"{job.config.test}; {job.reads.words()}"
        if job.reads.note:
            job.say(f"note      {job.reads.note}")
    job.say(f"figures   in %, ± half of a 95 % interval, on {where}")
    job.say(f"          choices by {job.config.metric.replace('_', ' ')} on {job.about['holdout_images']} held out of {job.division}")
