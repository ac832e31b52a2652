"""Between processes: clocks through the store, and what is said of an exchange; real exchanges: tests/pipeline/test_doctor.py."""

import time

import pytest

from mpp.checks import links
from mpp.checks.links import Exchange
from mpp.processes import peers
from mpp.processes.peers import ALONE
from tests.processes.test_peers import job, refuse


def test_clocks_that_agree_are_well_and_a_host_whose_clock_is_off_is_named():
    for found in job(4, lambda mine: links.clocks(mine), hosts=2):
        assert found.verdict == "ok" and found.found.startswith("2 hosts, the farthest from rank 0's clock is n1's by ")
    late = lambda mine: links.clocks(mine, lambda: time.time() - (90.0 if mine.hosts[mine.rank] == "n2" else 0.0))
    for found in job(6, late, hosts=3):
        assert found.verdict == "warning" and "n2's by -90.0" in found.found and found.found.endswith("too far: n2")
        assert "NTP" in found.fix


@pytest.mark.long
def test_a_host_that_leaves_while_clocks_are_compared_is_named_and_nobody_waits_for_it(monkeypatch):
    """Of three hosts the second: rank 0 asks it, the third waits for what rank 0 makes of it."""
    monkeypatch.setattr(peers, "FAREWELL_SECONDS", 0.5)
    found = job(3, lambda mine: refuse("its own trouble") if mine.rank == 1 else links.clocks(mine), hosts=3)
    assert {str(found[rank]) for rank in (0, 2)} == {"rank 1 (host n1) has left: its own trouble"}
    found = job(2, lambda mine: None if mine.rank == 1 else links.clocks(mine), seconds=0.5)
    assert str(found[0]).startswith("rank 1 of 2 has told nothing for 0 s")
    found = job(2, lambda mine: refuse("no") if mine.rank == 0 else links.clocks(mine))
    assert str(found[1]) == "rank 0 (host n0) has left: no"


def test_of_one_host_there_is_one_clock():
    assert links.clocks(ALONE).verdict == "ok"
    assert job(2, lambda mine: links.clocks(mine, lambda: 90.0 * mine.rank), hosts=1)[0].found == "one host, one clock"


@pytest.mark.parametrize(("compute", "verdict"), [(1.0, "ok"), (0.1, "warning"), (None, "ok")])
def test_an_exchange_that_takes_longer_than_arithmetic_is_a_warning(compute, verdict):
    found = job(4, lambda mine: links.exchanged([Exchange(2.0, 8.0, 1.0), Exchange(2.5, 9.0, 0.0)] * 2, mine, 10**9, compute))[0]
    assert found.verdict == verdict
    assert (
        "works between 4 processes of n0, n1: 2 GB/s each; inside a host 8 (the slowest: n0); between hosts, one process of each, 1"
        in found.found
    )
    assert ("take 750 ms" in found.found) == (compute is not None)  # 2 x 3/4 x 1 GB at 2 GB/s
