import zlib
from dataclasses import replace

import pytest

from mpp.data.batch_plan import plan_batch
from mpp.data.crop_dataset import CropDataset
from mpp.data.loader import batches
from mpp.data.order import Order, OrderSampler
from mpp.train.run_folder import cut_back_logs
from mpp.train.sample_log import SampleLog
from tests.data.masked_images import dataset

STEPS = 3


def log(folder, data: CropDataset, world: int, workers: int, first: int = 0, last: int = STEPS, micro_batch_max: int = 4) -> None:
    order = Order(tuple(data.pixels.source.samples_per_shard), 12, 12, data.seed)
    plan = plan_batch(12 * data.views, 12, world, micro_batch_max, data.views)
    for rank in range(world):
        lines = SampleLog(folder, rank)
        for batch in batches(data, OrderSampler(order, plan, rank, world, first, last), workers, pin_memory=False):
            lines.note(batch)


def joined(folder) -> list[str]:
    lines = [line for path in folder.glob("samples.rank*.tsv") for line in path.read_text().splitlines()]
    return sorted(lines, key=lambda line: int(line.split("\t")[0]))


@pytest.mark.parametrize(("world", "workers"), [(1, 3), (2, 0), (2, 2), (3, 1), (4, 0), (6, 1)])
def test_any_number_of_processes_and_workers_logs_the_same_samples_crops_masks_and_pixels(tiny_shards, tmp_path, world, workers):
    data = replace(dataset(tiny_shards), views=2)
    (alone := tmp_path / "alone").mkdir()
    (shared := tmp_path / "shared").mkdir()
    log(alone, data, 1, 0)
    log(shared, data, world, workers)
    assert joined(alone) == joined(shared)
    assert [int(line.split("\t")[0]) for line in joined(alone)] == list(range(STEPS * 24))
    assert len(list(shared.glob("*.tsv"))) == world


def test_a_run_stopped_anywhere_goes_on_with_another_world_and_misses_and_repeats_nothing(tiny_shards, tmp_path):
    data = dataset(tiny_shards)
    (whole := tmp_path / "whole").mkdir()
    (moved := tmp_path / "moved").mkdir()
    log(whole, data, 1, 0, 0, 6)
    for first, world, workers, micro_batch_max in [(0, 3, 0, 4), (1, 2, 1, 1), (3, 6, 0, 2), (5, 1, 2, 12)]:
        cut_back_logs(moved, first * 12)
        log(moved, data, world, workers, first, min(first + 3, 6), micro_batch_max)  # beyond what the next one starts from
    assert joined(moved) == joined(whole)


def test_a_line_says_what_was_shown_in_place_of_what(tmp_path, make_shards, damage):
    folder = make_shards(tmp_path / "train", [6, 6])
    damage(folder, [3])
    data = dataset(folder)
    SampleLog(tmp_path, 0).note(batch := data.batch([(0, 3, 40), (0, 5, 41)]))
    first, second = ((tmp_path / "samples.rank0.tsv").read_text()).splitlines()
    box = [str(edge) for edge in batch["box"][0].tolist()]
    assert first.split("\t")[:8] == ["40", "3", "4", *box, str(int(batch["pose"][0]))]
    assert second.split("\t")[:3] == ["41", "5", "5"]
    assert first.split("\t")[9] == f"{zlib.crc32(batch['image'][0].numpy()):08x}"


def test_logs_are_cut_back_to_the_position_a_run_resumes_from(tmp_path):
    (tmp_path / "samples.rank0.tsv").write_text("8\ta\n23\tb\n24\tc\n25")
    (tmp_path / "samples.rank3.tsv").write_text("30\td\n")
    notes = ['{"position": 23, "bad": 1}\n', '{"position": null, "bad": 2}\n', '{"position": 24, "bad": 3}\n', '{"position": 2']
    (tmp_path / "bad_samples.rank1.jsonl").write_text("".join(notes))
    cut_back_logs(tmp_path, 24)
    assert (tmp_path / "samples.rank0.tsv").read_text() == "8\ta\n23\tb\n"
    assert (tmp_path / "samples.rank3.tsv").read_text() == ""
    assert (tmp_path / "bad_samples.rank1.jsonl").read_text() == notes[0]
