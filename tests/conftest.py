"""What every test shares: one torch thread, hypothesis without clocks or chance, and small shard sets."""

import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.internal.conjecture import providers
from PIL import Image

from mpp.data.write_shards import Sample, write_manifest, write_shard

settings.register_profile(
    "mpp", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.register_profile(
    "mpp-first-failure", settings.get_profile("mpp"), phases=[Phase.explicit, Phase.generate]
)  # tests/test_mutations.py
settings.load_profile("mpp")
# Hypothesis also draws the numbers and words that stand in the source of whatever modules are loaded: which examples a test sees would
# depend on the tests before it (tests/test_draws.py).
providers._get_local_constants = lambda: providers._local_constants
torch.set_num_threads(1)
for name in ("CI", "BUILD_NUMBER"):  # where these are set, pytest spells out how two folders differ, byte by byte: minutes a megabyte
    os.environ.pop(name, None)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks, or it deals out every test by itself
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several test processes (make test) a module's tests share one, and so its fixtures; only planted bugs are dealt out one by one."""
    for item in items:
        if item.path.name != "test_mutations.py":
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


@pytest.fixture(scope="session", autouse=True)
def states(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[Path]]:
    """Folders that are not there yet, for what programs note for their user (mpp/transfer/ledger.py, mpp/data/fingerprints.py): no test writes to a real home."""
    base = tmp_path_factory.getbasetemp() / "states"
    folders = (base / str(number) for number in itertools.count())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(next(folders)))
        yield folders


@pytest.fixture(scope="module", autouse=True)
def state_of_the_module(states: Iterator[Path]) -> Iterator[None]:
    """For the programs that its fixtures run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(next(states)))
        yield


LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_place_in_a_job() -> None:
    """What a program that ran in this process has set there is not for those that the next test starts."""
    for name in LAUNCHERS:
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def state(states: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's own."""
    folder = next(states)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


def picture(key: int, smallest: int, side: int | None) -> bytes:
    """A PNG of its own size (side: of this one), a colour slope with noise: every sample and every crop of it looks different."""
    rng = np.random.default_rng(key)
    height, width = (smallest + rng.integers(0, 17, 2)).tolist() if side is None else (side, side)
    slope = np.linspace(0, 1, height)[:, None, None] * rng.integers(0, 256, 3) + np.linspace(0, 1, width)[:, None] * rng.integers(0, 256, 3)
    pixels = np.clip(slope / 2 + rng.normal(0, 12, (height, width, 3)) + 40, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_shards(folder: Path, samples_per_shard: Sequence[int], classes: int = 4, smallest: int = 24, side: int | None = None) -> Path:
    folder.mkdir(parents=True)
    parts, first = [], 0
    for number, count in enumerate(samples_per_shard):
        samples = []
        for key in range(first, first + count):
            data = picture(key, smallest, side)
            width, height = Image.open(io.BytesIO(data)).size
            samples.append(Sample(key, "png", data, width, height, key % classes if classes else -1))
        first += count
        parts.append(write_shard(folder, f"{number:06d}.tar", samples))
    write_manifest(
        folder,
        split=folder.name,
        shards=parts,
        classes=[f"class {label}" for label in range(classes)],
        colours=np.ones((3, 256), dtype=np.int64),
        colour_images=1,
        rejects=0,
        source={"name": "test"},
    )
    return folder


@pytest.fixture(scope="session")
def make_shards() -> Callable[..., Path]:
    """make_shards(folder, samples_per_shard, classes=4, smallest=24, side=None): a new shard set of PNGs, `side` pixels a side, or `smallest` to
    `smallest` + 16."""
    return write_shards


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 labelled images in shards of 16, 13 and 11; shared by all tests, so never to be changed."""
    return write_shards(tmp_path_factory.mktemp("tiny") / "train", [16, 13, 11])


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files and folders that this process flushes to the disk, in order; of what has a temporary name, this."""
    names, real = [], os.fsync

    def fsync(handle: int) -> None:
        real(handle)
        names.append(Path(f"/proc/self/fd/{handle}").readlink().name)

    monkeypatch.setattr(os, "fsync", fsync)
    return names


@pytest.fixture
def damage() -> Callable[[Path, Sequence[int]], None]:
    """damage(folder, samples): turn one bit in the bytes of each of these samples."""

    def turn(folder: Path, samples: Sequence[int]) -> None:
        from mpp.data.shards import ShardSet

        shards = ShardSet.open(folder)
        for sample in samples:
            row = shards.index[sample]
            with (folder / shards.shard_name(row["shard"])).open("r+b") as file:
                file.seek(int(row["offset"]) + int(row["size"]) // 2)
                byte = file.read(1)[0]
                file.seek(-1, 1)
                file.write(bytes([byte ^ 16]))

    return turn
