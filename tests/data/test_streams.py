"""Tars that nobody has indexed, read through webdataset: who reads which sample when, and what is said of tars that are not whole."""

import gzip
import hashlib
import io
import os
import signal
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mpp.base.errors import ConfigError, DataError
from mpp.config.pretrain import PretrainConfig
from mpp.config.schema import dump, load
from mpp.data.batch_plan import plan_batch
from mpp.data.crop_dataset import CropDataset
from mpp.data.loader import batches
from mpp.data.order import OrderSampler
from mpp.data.pixels import StoredPixels
from mpp.data.streams import Kept, Passed, Reading, Stream, StreamDataset, StreamOrder, Tar, is_stream, open_stream, refuse_stream, tars_of
from mpp.data.training_set import open_training_set
from mpp.processes.watchman import process_state
from mpp.remote.retries import hidden
from tests.conftest import picture
from tests.data.masked_images import AUGMENT, MASKING, same
from tests.data.tars import pictures, write_tar, write_tars
from tests.forks import Forked

BLOCK = 512
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tars(tmp_path_factory) -> Path:
    """000.tar to 003.tar of 5, 1, 9 and 3 samples, keys 0 to 17; never changed."""
    return write_tars(tmp_path_factory.mktemp("tars"), [5, 1, 9, 3])


def stream_of(words, buffer: int = 4, rank: int = 0, ranks: int = 1, first_step: int = 0, seed: int = 5) -> Stream:
    return Stream(words, tars_of(words), seed, buffer, 10**6, rank, ranks, first_step)


def dataset(stream: Stream, **more) -> StreamDataset:
    return StreamDataset(StoredPixels(stream, stream.max_pixels), AUGMENT, stream.seed, range(0), masking=MASKING, **more)


def sampler(stream: Stream, steps: int = 6, batch: int = 12, micro: int = 4, views: int = 1) -> OrderSampler:
    plan = plan_batch(batch, None, stream.ranks, micro, views)
    return OrderSampler(StreamOrder(len(stream.tars), plan.samples), plan, stream.rank, stream.ranks, stream.first_step, steps)


def keys(passed) -> list[int]:
    return [int(sample.key) for sample in passed]


def passes(stream: Stream, samples: int, worker: int = 0, workers: int = 1) -> dict[int, list[int]]:
    """Of the first so many samples of a reader: pass -> keys."""
    found: dict[int, list[int]] = {}
    for number, sample in islice(stream.reader(worker, workers), samples):
        found.setdefault(number, []).append(int(sample.key))
    return found


# ------------------------------------------------------------------------------------------------------------------------- what is one


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("shards/train", False),
        ("/data/a.tar", True),
        ("/data/a.TAR.gz", True),
        ("https://host/a.tgz", True),
        ("https://host/a.tar?version=3", True),
        ("/data/{000..099}.tar", True),
        ("/data/{a,b}/x", True),
        ("/data/{a}", False),
        ("pipe:cat /data/x", True),
        (("a.tar", "pipe:cat b"), True),
        (("train", "more"), False),
        ((), False),
        ("/data/tar", False),
        ("s3://bucket/prefix", False),
    ],
)
def test_a_stream_is_a_pipe_or_has_braces_or_ends_as_tars_do(words, answer):
    assert is_stream(words) is answer


def test_tars_and_folders_of_shards_in_one_list_are_refused():
    with pytest.raises(ConfigError, match=r"names tars \(b.tar\) and a folder of shards \(shards/train\); give either"):
        is_stream(("shards/train", "b.tar"))


def test_an_address_that_is_none_is_one_line_and_one_by_ipv6_is_taken_in_full():
    assert [tar.url for tar in tars_of("http://[0:0:0:0:0:0:0:1]/{0..1}.tar")] == [
        f"http://[0:0:0:0:0:0:0:1]/{number}.tar" for number in (0, 1)
    ]
    with pytest.raises(ConfigError, match=r"data\.shards: http://\[ is no address .*write all eight parts"):
        tars_of("http://[::1]/{0..1}.tar")


def test_braces_lists_and_the_environment_are_expanded_as_webdataset_does(monkeypatch):
    monkeypatch.setenv("WDS_SECRET", "sesame")
    assert [tar.url for tar in tars_of("/d/{08..10}.tar::x{a,b}.tar")] == ["/d/08.tar", "/d/09.tar", "/d/10.tar", "xa.tar", "xb.tar"]
    assert [tar.url for tar in tars_of(["a.tar", "b{0..1}.tar"])] == ["a.tar", "b0.tar", "b1.tar"]
    (tar,) = tars_of("pipe:get ${SECRET} a.tar")
    assert tar == Tar("pipe:get ${SECRET} a.tar", "pipe:get sesame a.tar")
    with pytest.raises(ConfigError, match="needs the environment variable WDS_NOTHING; set it"):
        tars_of("${NOTHING}.tar")
    with pytest.raises(ConfigError, match=r"opens no s3://; give a command that writes the tar, such as 'pipe:aws s3 cp s3://b/1.tar -'"):
        tars_of("s3://b/{1..2}.tar")


# ------------------------------------------------------------------------------------------------------------- who reads which sample when


def test_one_reader_sees_every_sample_of_every_tar_once_a_pass_each_time_in_another_order(tars):
    found = passes(stream_of(f"{tars}/{{000..003}}.tar"), 3 * 18)
    assert [sorted(found[number]) for number in range(3)] == [list(range(18))] * 3
    assert len({tuple(order) for order in found.values()}) == 3
    assert passes(stream_of(f"{tars}/{{000..003}}.tar"), 54) == found
    assert passes(stream_of(f"{tars}/{{000..003}}.tar", seed=6), 18)[0] != found[0]
    of_tars = passes(stream_of(f"{tars}/{{000..003}}.tar", buffer=1), 72).values()
    assert len({tuple(order) for order in of_tars}) > 1  # the tars are shuffled, too


def test_the_buffer_mixes_what_lies_side_by_side(tars):
    apart = [abs(a - b) for a, b in zip(*[iter(passes(stream_of(f"{tars}/002.tar", buffer=1), 8)[0])] * 2, strict=True)]
    assert apart == [1, 1, 1, 1]
    assert passes(stream_of(f"{tars}/002.tar", buffer=9), 9)[0] != list(range(6, 15))


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 2), (4, 3), (7, 1)])
def test_readers_together_see_every_sample_once_in_a_pass_also_where_there_are_fewer_tars_than_readers(tars, ranks, workers):
    seen = Counter()
    for rank in range(ranks):
        for worker in range(workers):
            for number, sample in stream_of(f"{tars}/{{000..003}}.tar", rank=rank, ranks=ranks).reader(worker, workers):
                if number:
                    break
                seen[int(sample.key)] += 1
    assert seen == Counter(range(18))


def test_a_reader_that_shares_a_tar_of_one_sample_does_not_wait_for_ever(tars):
    for rank in range(2):
        for worker in range(2):
            reader = stream_of(f"{tars}/001.tar", rank=rank, ranks=2).reader(worker, 2)
            assert keys(sample for _, sample in islice(reader, 3)) == [5, 5, 5]


def test_a_resume_begins_passes_of_another_order_and_crops_of_another_draw(tars):
    for words, buffer in ((f"{tars}/{{000..003}}.tar", 1), (f"{tars}/002.tar", 9)):  # of the tars, and in the buffer
        assert passes(stream_of(words, buffer), 9)[0] != passes(stream_of(words, buffer, first_step=4), 9)[0]
    first, again = (stream_of(f"{tars}/001.tar", first_step=step) for step in (0, 4))
    (epoch, sample), (later, same_sample) = first.take(), again.take()
    assert sample == same_sample and epoch == 0 and later > 1_000_000


def test_all_ranks_take_exactly_their_micro_batches_of_every_step_from_unequal_tars(tars):
    positions = []
    for rank in range(2):
        stream = stream_of(f"{tars}/{{000..003}}.tar", rank=rank, ranks=2)
        found = list(batches(dataset(stream), sampler(stream), 2, pin_memory=False))
        assert [len(batch["sample"]) for batch in found] == [3] * 12  # 6 steps of 6 views
        positions += torch.cat([batch["position"] for batch in found]).tolist()
    assert sorted(positions) == list(range(72))


def test_loader_processes_deal_out_tars_and_are_those_of_the_main_process_when_there_is_one(tars):
    stream = stream_of(f"{tars}/{{000..003}}.tar")
    alone = list(batches(dataset(stream), sampler(stream), 0, pin_memory=False))
    one = list(batches(dataset(stream), sampler(stream), 1, pin_memory=False))  # a fork begins its own, wherever this process is
    assert all(same(a, b) for a, b in zip(alone, one, strict=True))
    three = list(batches(dataset(stream), sampler(stream), 3, pin_memory=False))
    first_of_each = [set(torch.cat([batch["sample"] for batch in three[worker::3]]).tolist()) for worker in range(3)]
    assert len(first_of_each[0] | first_of_each[1] | first_of_each[2]) == 18


# ------------------------------------------------------------------------------------------------------------------- the batch's contract


def test_crop_and_mask_of_a_batch_are_those_of_a_set_of_shards_for_the_same_key_and_bytes(tars):
    stream = stream_of(f"{tars}/{{000..003}}.tar")
    data = dataset(stream, views=2)
    data.batch([(0, 0, 38)])
    found = data.batch([(0, 0, 40), (0, 0, 42), (0, 0, 44)])
    order = keys(sample for _, sample in islice(stream_of(f"{tars}/{{000..003}}.tar").reader(0, 1), 1, 4))
    number = {key: Passed(Tar(f"{tars}/{named(key)}", ""), f"{key:06d}", b"").id for key in order}
    assert found["sample"].tolist() == [number[key] for key in order for _ in range(2)]

    class Same(Kept):
        """The same bytes by the same numbers."""

        def read(self, sample: int) -> bytes:
            return picture(next(key for key, known in number.items() if known == sample), 24, None)

        def size_of(self, sample: int) -> tuple[int, int]:
            return Image.open(io.BytesIO(self.read(sample))).size

    images = StoredPixels(Same(Path("x"), [], []), 10**6)
    known = CropDataset(images, AUGMENT, 5, np.array(sorted(number.values())), 2, masking=MASKING)
    assert len(stream._in_hand) == 3  # and no more of those before
    assert same(found, known.batch([(0, number[key], 40 + 2 * place) for place, key in enumerate(order)]))


def named(key: int) -> str:
    return f"{sum(key >= first for first in (5, 6, 15)):03d}.tar"


def test_a_sample_is_known_by_63_bits_of_tar_and_key_without_what_is_secret(tars):
    sample = Passed(tars_of("https://me:sesame@host/a.tar?token=sesame")[0], "012/3", b"")
    assert sample.id == int.from_bytes(hashlib.blake2b(b"https://host/a.tar?...\x00012/3", digest_size=8).digest()) // 2 < 2**63
    assert sample.where == "https://host/a.tar?...: 012/3"
    assert dataset(stream_of(f"{tars}/001.tar")).batch([(0, 0, 7)])["position"].tolist() == [7]


def test_a_bad_image_is_noted_by_tar_and_key_and_the_next_readable_one_stands_in(tmp_path):
    members = pictures(range(3))
    write_tar(tmp_path / "a.tar", [("bad.png", members[0][1][:90]), *members])
    found = dataset(stream_of(f"{tmp_path}/a.tar", buffer=1)).batch([(0, 0, 30), (0, 0, 31)])
    assert found["replaced"].tolist() == [True, False] and found["position"].tolist() == [30, 31]
    (fault,) = found["bad"]
    assert fault["position"] == 30 and fault["bad"] == fault["sample"] == int(found["sample"][0])
    assert fault["where"] == f"{tmp_path}/a.tar: bad"
    assert int(found["shown"][0]) != int(found["sample"][0])


def test_a_stream_of_bad_images_alone_is_an_error_and_no_endless_search(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.png", b"no image"), ("2.jpg", b"none either")])
    with pytest.raises(DataError, match=r"100 samples in a row are unreadable, from .*a.tar: 1 on"):
        dataset(stream_of(f"{tmp_path}/a.tar", buffer=1)).batch([(0, 0, 0)])


def test_other_formats_are_read_as_shards_would_keep_them(tmp_path):
    Image.fromarray(np.full((20, 30, 3), 77, np.uint8)).save(tmp_path / "x.tif")
    write_tar(tmp_path / "a.tar", [("x.tif", (tmp_path / "x.tif").read_bytes())])
    found = dataset(stream_of(f"{tmp_path}/a.tar")).batch([(0, 0, 0)])
    assert found["bad"] == [] and (found["image"] == 77).all()


# ---------------------------------------------------------------------------------------------------------------- tars that are not whole


def reading(*tars: str) -> list[int]:
    return keys(Reading(tars_of(list(tars))))


def test_a_tar_that_is_cut_anywhere_is_named_wherever_the_cut_lies(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", pictures(range(4))).read_bytes()
    assert reading(str(tmp_path / "whole.tar")) == [0, 1, 2, 3]
    end = len(whole.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK
    assert end < len(whole)
    told = Counter()
    for cut in [*range(0, end + 1, BLOCK), *range(100, end, 1000)]:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cut\.tar (is (cut|empty|damaged)|is no tar).*; mend it or get it again") as error:
            reading(str(tmp_path / "cut.tar"))
        told[str(error.value).split("cut.tar ")[1].split(",")[0].split(":")[0]] += 1
    assert told["is cut at a header"] >= 8 and told["is cut inside a member"] > 10
    (tmp_path / "cut.tar").write_bytes(whole[: end + BLOCK])  # with its end mark
    assert reading(str(tmp_path / "cut.tar")) == [0, 1, 2, 3]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_packed_tar_is_read_and_its_cut_is_named(tmp_path, mode):
    packed = write_tar(tmp_path / "a.tar", pictures(range(4)), mode).read_bytes()
    assert reading(str(tmp_path / "a.tar")) == [0, 1, 2, 3]
    for share in (0.3, 0.9, 0.999):
        (tmp_path / "a.tar").write_bytes(packed[: int(share * len(packed))])
        with pytest.raises(DataError, match=r"a\.tar is cut"):
            reading(str(tmp_path / "a.tar"))


def test_a_tar_that_was_packed_after_it_was_cut_is_named_too(tmp_path):
    whole = write_tar(tmp_path / "a.tar", pictures(range(4))).read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(whole[: 3 * BLOCK]))
    with pytest.raises(DataError, match=r"a\.tar\.gz is cut"):
        reading(str(tmp_path / "a.tar.gz"))


def test_a_damaged_header_and_tars_joined_by_cat_are_no_ends(tmp_path):
    whole = write_tar(tmp_path / "a.tar", pictures(range(4))).read_bytes()
    second = whole.index(b"000001.png")
    (tmp_path / "a.tar").write_bytes(whole[: second + 150] + b"9" + whole[second + 151 :])
    with pytest.raises(DataError, match=rf"a\.tar is damaged: the header at byte {second:,} is none"):
        reading(str(tmp_path / "a.tar"))
    (tmp_path / "a.tar").write_bytes(whole + whole)
    with pytest.raises(DataError, match="goes on behind its end mark"):
        reading(str(tmp_path / "a.tar"))


def test_pax_and_long_names_are_followed_to_the_true_end(tmp_path):
    named = [("x/" * 80 + f"{key}.png", picture(key, 24, None)) for key in range(3)]
    whole = write_tar(tmp_path / "a.tar", named).read_bytes()
    assert len(list(Reading(tars_of(f"{tmp_path}/a.tar")))) == 3
    (tmp_path / "a.tar").write_bytes(whole[: whole.rindex(b"ustar") - 257])
    with pytest.raises(DataError, match="is cut at a header"):
        list(Reading(tars_of(f"{tmp_path}/a.tar")))


def test_a_command_that_fails_is_named_with_its_status_whenever_it_fails(tars):
    tar = tars / "000.tar"
    assert reading(f"pipe:cat {tar}") == [0, 1, 2, 3, 4]
    for command, words in [
        ("exit 22", "ended with status 22"),
        (f"cat {tar}; exit 3", "ended with status 3"),
        (f"head -c 3000 {tar}; exit 5", "ended with status 5"),
        ("kill -9 $$", "was ended by signal 9"),
    ]:
        with pytest.raises(DataError, match=f"comes from a command that {words}; mend it"):
            reading(f"pipe:{command}")
    with pytest.raises(DataError, match="is cut inside a member"):  # of which the shell says nothing
        reading(f"pipe:head -c 3000 {tar}")
    with pytest.raises(DataError, match="is empty"):
        reading("pipe:true")


def test_a_cut_stops_a_loader_process_with_the_same_line(tars, tmp_path):
    (tmp_path / "cut.tar").write_bytes((tars / "002.tar").read_bytes()[:3000])
    stream = stream_of(f"{tmp_path}/cut.tar")
    with pytest.raises(DataError, match=r"cut\.tar is cut inside a member, at byte 3,000; mend it or get it again") as error:
        list(batches(dataset(stream), sampler(stream), 2, pin_memory=False))
    assert error.value.of_this_rank


def test_an_image_that_would_fill_the_memory_is_refused_by_its_header_and_other_files_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("mpp.data.streams.MAX_FILE_BYTES", 5000)
    write_tar(tmp_path / "a.tar", [("1.png", picture(1, 24, None)), ("1.mp4", bytes(6000))])
    assert reading(str(tmp_path / "a.tar")) == [1]
    write_tar(tmp_path / "a.tar", [("1.png", picture(1, 24, None)), ("2.png", bytes(6000))])
    with pytest.raises(DataError, match=r"a\.tar holds 2.png of 6,000 bytes, and an image has 5,000 at most; mend it"):
        reading(str(tmp_path / "a.tar"))


def test_what_is_no_tar_of_images_is_refused(tmp_path, tars):
    write_tar(tmp_path / "texts.tar", [("1.txt", b"a"), ("1.json", b"{}")])
    with pytest.raises(DataError, match=r"texts\.tar holds no image \(it has \.txt, \.json\)"):
        reading(str(tmp_path / "texts.tar"))
    write_tar(tmp_path / "two.tar", [("1.png", picture(0, 24, None)), ("1.mask.png", picture(1, 24, None))])
    with pytest.raises(DataError, match=r"has 2 images under the key 1 \(mask.png, png\).*--image-field"):
        reading(str(tmp_path / "two.tar"))
    (tmp_path / "page.tar").write_bytes(b"<html>" * 1000)
    with pytest.raises(DataError, match=r"page\.tar is no tar of samples"):
        reading(str(tmp_path / "page.tar"))
    with pytest.raises(DataError, match=r"no\.tar is not there, or no file; give tars that are"):
        open_stream(f"{tmp_path}/no.tar", 0, 1, 10**6, 1)
    with pytest.raises(DataError, match="cannot be read"):
        reading(str(tmp_path / "no.tar"))


ENDLESS = """
import sys
from mpp.data.loader import batches
from tests.data.test_streams import dataset, sampler, stream_of

stream = stream_of("pipe:" + sys.argv[1], buffer=1)
list(batches(dataset(stream), sampler(stream), 1, pin_memory=False))
"""


@pytest.mark.timeout(60)
def test_a_loader_process_that_waits_for_a_command_ends_with_its_rank_and_so_does_the_command(tmp_path):
    rank = Forked(
        ["-c", ENDLESS, f"echo $PPID $$ > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/pids; exec sleep 90"], cwd=ROOT, env=os.environ
    )
    while not (tmp_path / "pids").exists():
        assert rank.poll() is None
        time.sleep(0.05)
    os.kill(rank.pid, signal.SIGKILL)
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        while process_state(pid)[0] not in ("", "Z"):  # who has no parent any more may be nobody's to bury
            time.sleep(0.05)


@pytest.mark.timeout(30)
def test_reading_a_tar_in_part_leaves_no_command_behind(tmp_path):
    write_tar(tmp_path / "a.tar", pictures(range(90)))  # more than is read at once
    held = iter(Reading(tars_of(f"pipe:echo $$ > {tmp_path}/pid; cat {tmp_path}/a.tar; exec sleep 90")))
    assert next(held).key == "000000"
    pid = int((tmp_path / "pid").read_text())
    held.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# ------------------------------------------------------------------------------------------------------------------------- the hold-out


def test_the_first_readable_images_are_held_out_and_their_tars_are_not_trained_on(tmp_path):
    members = pictures(range(12))
    write_tar(tmp_path / "0.tar", [("bad.png", members[0][1][:90]), *members[:6]])  # 3 samples
    write_tar(tmp_path / "1.tar", members[6:14])
    write_tar(tmp_path / "2.tar", members[14:])
    stream, kept = open_stream(f"{tmp_path}/{{0..2}}.tar", 0, 4, 10**6, 5)
    assert keys(kept.samples) == [0, 1, 2, 3, 4]
    assert [tar.file for tar in stream.tars] == ["2.tar"] and stream.held_out_tars == 2
    assert set(passes(stream, 20)[0]) == set(range(7, 12))
    again = open_stream(f"{tmp_path}/{{0..2}}.tar", 7, 9, 10**6, 5)[1]  # whatever the seed
    assert again.identity == kept.identity


def test_a_hold_out_that_leaves_nothing_is_refused_with_numbers(tars):
    words = f"{tars}/{{000..003}}.tar"
    assert len(open_stream(words, 0, 4, 10**6, 15)[0].tars) == 1
    for count, found, used in [(16, 16, 4), (99, 18, 4)]:
        with pytest.raises(
            ConfigError,
            match=rf"holdout_samples={count} .* first of 4 tars.*: {found} readable images are in the first {used}, and nothing",
        ):
            open_stream(words, 0, 4, 10**6, count)


WORDS = [
    "data={global_batch: 12, holdout_samples: 4}",
    "optim={warmup_samples: 0, total_samples: 24}",
    "model={image_size: 16, patch_size: 4}",
]


def config_of(words: object, *more: str) -> PretrainConfig:
    return load(PretrainConfig, None, [*WORDS, f"data.shards={words}", *more])


def test_what_a_run_depends_on_is_the_names_of_the_tars_and_the_hold_out(tars, tmp_path):
    known = lambda *words: open_training_set(config_of(*words)).manifests["shards"]
    here = known(f"{tars}/{{000..003}}.tar")
    for number in range(4):
        (tmp_path / f"{number:03d}.tar").write_bytes((tars / f"{number:03d}.tar").read_bytes())
    assert known(f"pipe:cat {tmp_path}/{{000..003}}.tar") == here  # tars may move
    assert known(f"{tars}/{{000..002}}.tar") != here
    write_tar(tmp_path / "000.tar", pictures(range(20, 25)))
    assert known(f"{tmp_path}/{{000..003}}.tar") != here


def test_a_hold_out_of_its_own_leaves_all_tars_to_train_on(tars, tiny_shards):
    sets = open_training_set(config_of(f"{tars}/{{000..003}}.tar", f"data.holdout_shards={tiny_shards}"))
    assert len(sets.stream.tars) == 4 and sets.held_out.path == tiny_shards
    assert set(sets.manifests) == {"shards", "holdout_shards"}


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("optim.epochs=3", r"optim.epochs=3.0 must know how many images.*give optim.total_samples="),
        ("budget=2h", r"budget=2h must know how many images"),
        ("fit=small", r"fit=small must know how many images"),
        ("system.images=ram", r"system.images=ram is for a set of shards"),
        ("system.decode=device", r"system.decode=device is for a set of shards"),
        ("data.block=8", r"data.block=8 is for a set of shards"),
    ],
)
def test_what_needs_a_set_of_known_size_is_refused_with_the_remedy(tars, word, words):
    with pytest.raises(ConfigError, match=words):
        open_training_set(config_of(f"{tars}/{{000..003}}.tar", word))


def test_programs_that_need_an_index_say_how_to_make_one():
    with pytest.raises(
        ConfigError, match=r"data.shards=a\{0..1\}.tar is a stream of tars without an index, and .*; python data_prep/index_shards.py"
    ):
        refuse_stream("a{0..1}.tar", "something else is needed")
    refuse_stream("shards/train", "")


# --------------------------------------------------------------------------------------------------------------------- what people are told


def test_the_start_says_in_one_line_what_is_weaker_and_where_tars_are_fewer_than_readers(tars):
    sets = open_training_set(config_of(f"{tars}/{{000..003}}.tar"))
    (line,) = sets.remarks
    for words in (
        "3 tars (1 more held out)",
        "order of samples depends on ranks x loader processes",
        "no checksums",
        "a resume begins new passes",
    ):
        assert words in line
    assert sets.stream.shared_words(3) == sets.stream.shared_words(0) == ""
    assert "3 tars for 4 readers (1 rank x 4 loader processes)" in sets.stream.shared_words(4)
    assert "every k-th sample" in sets.stream.shared_words(4)


SECRETS = [
    "https://me:sesame@host/{0..9}.tar",
    "https://host/{0..9}.tar?X-Amz-Signature=sesame",
    "pipe:curl -s -H 'Authorization: Bearer sesame' https://host/{0..9}.tar",
    'pipe:curl -H "X-Api-Key: sesame" -s https://host/{0..9}.tar',
    "pipe:curl --header=Cookie:sesame https://host/{0..9}.tar",
    "pipe:curl -HX-Token:sesame https://host/{0..9}.tar",
    "pipe:curl 'https://host/{0..9}.tar?a=1&token=sesame'",
    "pipe:curl -u me:sesame https://host/{0..9}.tar",
    "pipe:AWS_SECRET_ACCESS_KEY=sesame aws s3 cp s3://b/{0..9}.tar -",
    "pipe:get --token sesame {0..9}.tar",
    "pipe:get --password='sesame' {0..9}.tar",
]


@pytest.mark.parametrize("word", SECRETS)
def test_credentials_in_a_word_are_in_no_file_and_no_line(word):
    config = config_of(word if word.startswith("pipe:") else f"'{word}'")
    assert config.data.shards == word  # for webdataset
    assert (
        "sesame" not in dump(config)
        and "sesame" not in str(config.model_dump(mode="json"))
        and "sesame" not in hidden(f"data.shards={word}")
    )
    assert all("sesame" not in tar.name and "sesame" in tar.url and tar.file == f"{number}.tar" for number, tar in enumerate(tars_of(word)))
    assert "{0..9}.tar" in dump(config)


@pytest.mark.parametrize(
    "word", ["[pipe:get --token sesame a.tar, 3]", "['pipe:get --token sesame a.tar', b", "{a: 'https://me:sesame@host/a.tar'}"]
)
def test_a_word_that_is_wrong_is_told_without_its_credentials(word):
    with pytest.raises(ConfigError, match=r"data\.shards") as error:
        config_of(word)
    assert "sesame" not in str(error.value)
    with pytest.raises(ConfigError, match="is not of the form key=value") as error:
        load(PretrainConfig, None, [word.strip("[")])
    assert "sesame" not in str(error.value)


def test_words_without_secrets_stand_as_they_are():
    for word in (
        "shards/train",
        "model.class_tokens=8",
        "pipe:aws s3 cp s3://b/{000..099}.tar -",
        "/data/key=3/{0..1}.tar",
        "pipe:aws s3 cp s3://b/key=3/{0..9}.tar -",
        "pipe:scp host-key:/data/{0..9}.tar /dev/stdout",
        "optim={base_lr: 1}",
    ):
        assert hidden(word) == word


def test_a_command_is_no_yaml():
    assert config_of("pipe:curl -H 'A: b' x.tar # {a: 1}").data.shards == "pipe:curl -H 'A: b' x.tar # {a: 1}"
    assert config_of("[a.tar, b.tar]").data.shards == ("a.tar", "b.tar")
