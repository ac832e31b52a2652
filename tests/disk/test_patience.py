"""Reads that fail for a while are tried again, as long as time may mend them."""

import errno
import os

import pytest

from mpp.disk import patience as module
from mpp.disk.patience import PASSING, SHORT, disks, patiently


@pytest.fixture
def slept(monkeypatch):
    monkeypatch.setattr(disks, "patience", 300.0)  # whatever a program that ran in this process has asked for
    waits = list[float]()
    monkeypatch.setattr(module.time, "sleep", waits.append)
    return waits


def failing(number: int, times: int):
    left = [OSError(number, os.strerror(number))] * times

    def work() -> str:
        if left:
            raise left.pop()
        return "read"

    return work


@pytest.mark.parametrize("number", sorted(PASSING))
def test_what_time_may_mend_is_waited_for_with_growing_waits(number, slept, capsys):
    again = []
    assert patiently(failing(number, 6), "train/000001.tar", lambda: again.append(1)) == "read"
    assert slept == pytest.approx([0.1, 0.4, 1.6, 6.4, 25.6, 30]) and len(again) == 6
    said = capsys.readouterr().err
    assert said.count("train/000001.tar") == 4 and "trying again in 26 s, for up to 300 s" in said


@pytest.mark.parametrize("number, seconds", [(errno.ESTALE, 300), (errno.EIO, 300), (errno.ENOENT, SHORT), (errno.EACCES, SHORT)])
def test_it_is_given_up_in_the_end_and_soon_where_time_mends_nothing(number, seconds, slept):
    with pytest.raises(OSError) as raised:
        patiently(failing(number, 1000), "x")
    assert raised.value.errno == number and sum(slept) == pytest.approx(seconds)


def test_no_patience_is_none(monkeypatch, slept):
    monkeypatch.setattr(disks, "patience", 0.0)
    with pytest.raises(OSError):
        patiently(failing(errno.ESTALE, 1), "x")
    assert slept == []


def test_what_is_no_fault_of_a_disk_is_not_tried_again(slept):
    with pytest.raises(ValueError):
        patiently(lambda: int("x"), "x")
    assert slept == []
