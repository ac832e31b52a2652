"""Joules of a machine's own counters: packages and not their parts, over the end of a counter, and none where nothing can be read."""

import sys
from types import SimpleNamespace

import pytest

import mpp.monitor.energy as energy


@pytest.fixture
def counters(tmp_path, monkeypatch):
    """(package, joules) -> what its counter says; packages count to a hundred."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", None)

    def set_to(name, joules):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
        (folder / "max_energy_range_uj").write_text("100000000\n")

    return set_to


def test_packages_are_summed_and_what_lies_below_them_is_not_counted_twice(counters):
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "dtpm"):
        counters(name, 10)
    meter = energy.Energy()
    counters("intel-rapl:0", 13), counters("intel-rapl:1", 14.5), counters("intel-rapl:0:0", 90), counters("dtpm", 90)
    assert meter.look() == pytest.approx(7.5)
    assert meter.look() == 0.0  # since the last look


def test_a_counter_that_begins_anew_goes_on(counters):
    counters("intel-rapl:0", 95)
    meter = energy.Energy()
    counters("intel-rapl:0", 3)
    assert meter.look() == pytest.approx(8)


def test_where_no_counter_can_be_read_nothing_is_said(counters, tmp_path):
    assert energy.Energy().look() is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert energy.Energy().look() is None  # without its files, as where they may not be read


def test_gpus_are_asked_in_millijoules(monkeypatch, tmp_path):
    counted = {"gpu": 5_000}

    class NVMLError(Exception): ...  # fmt: skip

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: counted["gpu"] + gpu,
        NVMLError=NVMLError,
    )
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = energy.Energy()
    counted["gpu"] = 6_500
    assert meter.look() == pytest.approx(3.0)
