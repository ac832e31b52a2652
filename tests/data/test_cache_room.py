"""When shards are needed, how many are in hand, and who makes way: what a cache decides, without a store."""

import os
import re
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpp.base.errors import ConfigError, UserError
from mpp.data.cache_folder import CacheFolder, Part, Shard
from mpp.data.fetch_plan import Plan
from mpp.data.in_hand import in_hand, refuse_beyond
from mpp.data.order import EveryOnce, Order

SHARDS, SAMPLES = 8, 6  # of the set; of a shard


def sampler(ids: list[int], batch: int = 1) -> EveryOnce:
    return EveryOnce(np.array(ids), batch, 0, 1)


@given(st.lists(st.integers(0, SHARDS * SAMPLES - 1), min_size=1, max_size=80), st.integers(1, 4), st.integers(0, 100))
def test_a_plan_knows_when_each_shard_is_needed_next(ids, batch, at):
    plan = Plan(sampler(ids, batch), "k", [f"{number}.tar" for number in range(SHARDS)], np.arange(0, SHARDS * SAMPLES, SAMPLES))
    plan.look(SHARDS + 1)
    plan.moved(at)
    plan.look(SHARDS + 1)
    numbers = -(-len(ids) // batch)
    batches = [[ids[min(place, len(ids) - 1)] // SAMPLES for place in range(n * batch, (n + 1) * batch)] for n in range(numbers)]
    at = min(at, numbers)
    for shard in range(SHARDS):
        ahead = [number - at for number in range(at, numbers) if shard in batches[number]]
        assert plan.distance(Shard("k", f"{shard}.tar")) == (ahead[0] if ahead else float("inf"))


def test_a_plan_looks_ahead_no_further_than_it_has_to_and_keeps_little():
    endless = iter(lambda: [(0, 0, 0)], None)
    plan = Plan(endless, "k", ["0.tar", "1.tar"], np.array([0, 5]))
    for at in range(0, 100_000, 500):
        plan.moved(at)
    assert len(plan._ahead) < 2000


@given(
    st.lists(st.integers(5, 60), min_size=3, max_size=12),
    st.sampled_from([(12, 12), (12, 4), (8, 8), (6, 1)]),
    st.sampled_from([1, 2]),
    st.integers(1, 9),
    st.integers(0, 5),
)
def test_what_is_refused_does_not_fit_and_what_is_named_instead_does(sizes, batch, machines, room, seed):
    order = Order(tuple(sizes), batch[0], batch[1], seed)
    if sum(sizes) < order.batch or batch[1] % machines:
        return
    bytes_ = np.array(sizes) * 1000
    limit = int(np.sort(bytes_)[::-1][:room].sum())
    try:
        assert refuse_beyond(order, machines, machines, bytes_, limit, "s3://x").bytes <= limit
    except ConfigError as error:
        assert in_hand(order, machines, bytes_).bytes > limit
        if found := re.search(r"set (?:data.streams=(\d+) )?data.block=(\d+)", str(error)):
            named = Order(tuple(sizes), batch[0], int(found[1] or batch[1]), seed, int(found[2]))
            assert refuse_beyond(named, machines, machines, bytes_, limit, "s3://x").bytes <= limit


def test_a_limit_beyond_the_disk_is_refused_with_another_disk_as_the_remedy():
    order, bytes_ = Order((10,) * 8, 4, 4, 0), np.full(8, 1_000_000_000)
    with pytest.raises(
        ConfigError, match=r"the cache holds 3 GB, which is all that its disk has \(3 shards\).*give system\.cache= on a disk with 8\.4 GB"
    ):
        refuse_beyond(order, 1, 1, bytes_, 300_000_000_000, "s3://x", disk=3_000_000_000)
    with pytest.raises(ConfigError, match=r"the cache holds 3 GB \(3 shards\).*raise system\.cache_gb to 8\.4"):
        refuse_beyond(order, 1, 1, bytes_, 3_000_000_000, "s3://x", disk=300_000_000_000)
    assert refuse_beyond(order, 1, 1, bytes_, 9_000_000_000, "s3://x", disk=9_000_000_000).shards == 8


def test_a_claim_that_a_full_disk_does_not_take_fails_where_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("mpp.data.cache_folder.secrets.token_hex", lambda count: "full")
    (tmp_path / "cache" / "keepers").mkdir(parents=True)
    (tmp_path / "cache" / "keepers" / f"{os.getpid()}-full").symlink_to("/dev/full")
    cache = CacheFolder(tmp_path / "cache", 1.0)
    with pytest.raises(OSError, match="No space left"):
        cache.claim(0, [])
    cache.close()
    assert not list((tmp_path / "cache" / "keepers").iterdir())


def test_a_cache_that_is_a_file_or_leads_nowhere_is_named_as_that(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, said in (("file", "is a file"), ("link", "is a link to what is not there")):
        with pytest.raises(UserError, match=rf"system\.cache={tmp_path}/{name} {said}; give a folder"):
            CacheFolder(tmp_path / name, 1.0)


def test_what_another_job_is_about_to_read_makes_no_way(tmp_path):
    one, two = (CacheFolder(tmp_path / "shared", 2.5e-6) for _ in range(2))
    for name in ("a.tar", "b.tar"):
        part = one.begin(Shard("k", name), 1000, lambda shard: 0.0)
        assert isinstance(part, Part)
        one.publish(part)
    one.claim(0, [Shard("k", "a.tar")])
    part = two.begin(Shard("k", "c.tar"), 1000, lambda shard: 1.0 if shard.name == "c.tar" else float("inf"))
    assert isinstance(part, Part)
    assert sorted(path.name for path in (tmp_path / "shared/sets/k").glob("*.tar")) == ["a.tar"]
    part.discard()
    one.claim(0, [Shard("k", "a.tar")])
    assert two.begin(Shard("k", "d.tar"), 2000, lambda shard: 0.0) == "full"
    one.close()  # it has ended
    assert isinstance(two.begin(Shard("k", "d.tar"), 2000, lambda shard: 0.0 if shard.name == "d.tar" else 9.0), Part)


def test_no_shard_gets_its_name_while_files_are_counted(tmp_path):
    """It would be counted twice, or not at all, and the cache would grow beyond its limit."""
    cache = CacheFolder(tmp_path / "cache", 1e-5)
    part = cache.begin(Shard("k", "a.tar"), 1000, lambda shard: 0.0)
    assert isinstance(part, Part)
    with cache.locked():
        thread = threading.Thread(target=cache.publish, args=(part,))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive() and not cache.has(Shard("k", "a.tar"))
    thread.join()
    assert cache.has(Shard("k", "a.tar"))


def test_a_cache_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match="belongs to user"):
        CacheFolder(tmp_path / "cache", 1.0)


def test_the_part_that_a_killed_job_left_takes_no_room_and_one_that_is_being_fetched_stays(tmp_path):
    folder = CacheFolder(tmp_path / "shared", 3e-6)
    left = folder.place(Shard("k", ".left.tar.part"))
    left.parent.mkdir()
    left.write_bytes(bytes(4096))
    first, second = (folder.begin(Shard("k", name), 1000, lambda shard: 0.0) for name in ("a.tar", "b.tar"))
    assert isinstance(first, Part) and not left.exists()
    assert first.path.exists() and isinstance(second, str | Part)
