"""Which config a set of images is sent to: by how many there are and how large they are."""

import os
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import load
from mpp.data.shard_format import read_manifest
from mpp.prep.advice import FEW, LARGE, config_for, feeding_lines, next_line, usual_side
from tests.forks import run_forked
from tests.pipeline.conftest import ROOT


def manifest(samples, *short_sides):
    return SimpleNamespace(samples=samples, short_sides=list(short_sides))


@pytest.mark.parametrize(
    ("short_sides", "size"),
    [
        ([(1, 10)], 32),
        ([(32, 10)], 32),
        ([(64, 10)], 96),
        ([(160, 10)], 96),
        ([(192, 10)], 224),
        ([(2048, 10)], 224),
        ([(32, 10), (256, 11)], 224),
        ([(256, 10), (32, 11)], 32),
    ],
)
def test_a_small_set_goes_to_the_preset_of_its_usual_size(short_sides, size):
    assert config_for(manifest(2000, *short_sides)) == f"configs/small_{size}.yaml"


def test_a_large_set_goes_to_the_papers_own_recipe():
    assert config_for(manifest(FEW, (256, FEW))) == "configs/small_224.yaml" and config_for(manifest(FEW + 1, (256, FEW + 1))) == LARGE


def of_shards(shards, per_shard, image):
    held = SimpleNamespace(samples=[per_shard] * shards)
    return feeding_lines(SimpleNamespace(samples=shards * per_shard, bytes=shards * per_shard * image, shards=held))


def test_a_large_set_says_from_how_many_shards_a_process_reads_and_what_blocks_and_larger_shards_change():
    # 100,000 shards for 64 processes: 1,562.5 each, so 1,561 whole ones and two cut at most, 1,564 as the shares are 1,562.4998 shards long.
    lines = of_shards(100_000, 10_000, 10_000)
    assert len(lines) == 3
    assert lines[0].startswith("feeding:  100,000 shards of 10,000 images, 100 MB; ")
    assert lines[0].endswith("of 8: 12,501, of 64: 1,564, of 512: 197")
    # With 1,024 streams a process of 64 has 16, each in two neighbouring blocks of 10,000: three shards at most.
    assert "data.block=10000" in lines[1] and "of 8: 384, of 64: 48, of 512: 6:" in lines[1]
    assert "--samples-per-shard 100000 " in lines[2]


def test_nothing_is_said_of_feeding_where_it_is_no_question():
    assert of_shards(99, 10_000, 10_000) == []
    assert len(of_shards(500, 10_000, 10_000)) == 1  # a stream is as long as a shard, and there are few


def test_the_usual_side_is_the_medians():
    assert [usual_side(bins) for bins in ([], [(64, 1)], [(32, 5), (64, 4), (96, 1)], [(32, 4), (64, 4), (96, 2)])] == [0, 64, 32, 64]


def test_making_indexing_and_inspecting_send_to_the_same_config_and_it_takes_the_shards(tiny_shards, tmp_path):
    line = next_line(tiny_shards, read_manifest(tiny_shards)[0])
    command = re.fullmatch(r"next:     deepspeed (mpp/pretrain\.py --config (\S+) data\.shards=\S+)  \(budget=30min: .*\)", line)
    words = command[1].split()[3:]
    assert load(PretrainConfig, ROOT / command[2], [*words, "budget=30min"]).data.shards == str(tiny_shards)
    asked = run_forked(["data_prep/inspect_shards.py", str(tiny_shards), "--config"], cwd=ROOT, env=os.environ)
    assert asked.stdout == f"{command[2]}\n"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for tar in tiny_shards.glob("*.tar"):
        shutil.copy(tar, foreign)
    made = run_forked(["data_prep/index_shards.py", str(foreign)], cwd=ROOT, env=os.environ)
    assert made.returncode == 0 and made.stdout.endswith(f"{next_line(foreign, read_manifest(foreign)[0])}\n"), made.stderr


@pytest.mark.parametrize(("words", "probes"), [([], "rank_only=true"), (["LABELS=1"], "test=demo/own/shards/val")])
def test_the_demo_of_a_folder_asks_the_shards_for_their_config(words, probes):
    ours = {name: value for name, value in os.environ.items() if name not in ("DATA", "DEMO", "WORDS")}  # of the `make test` above this
    asked = lambda *words: subprocess.run(["make", *words], cwd=ROOT, env=ours, capture_output=True, text=True, check=True).stdout
    shown = asked("-n", "demo", "DATA=pictures", *words).replace('"$DEMO"', "demo")
    assert (
        "--config $(" in shown and "inspect_shards.py demo/own/shards/train --config)" in shown and "run_dir=demo/own/run $WORDS\n" in shown
    )
    assert probes in shown and ("--labels --val 0.1" in shown) == bool(words)
    says = "--eval=says: ; @echo words $$WORDS, demo $$DEMO"
    assert "words budget=4min, demo demo" in asked(says, "says", "DATA=pictures") and "words , demo demo" in asked(says, "says")
