"""The table of figures: found by name or pattern, each with a title of its own."""

import dataclasses

import pytest

from mpp.monitor.figures import FIGURES, Figure, figure_of


def test_a_figure_is_found_by_its_name_or_by_the_pattern_it_fits():
    loss, any_block, third = (Figure(title, "", "", "") for title in ("loss", "any block", "the third"))
    known = {"train/loss": loss, "attention/block_*": any_block, "attention/block_3": third}
    assert figure_of("train/loss", known) is loss and figure_of("train/loss_of", known) is None
    assert figure_of("attention/block_12", known) is any_block and figure_of("attention/block_3", known) is third
    assert figure_of("train/loss") is FIGURES["train/loss"] and figure_of("train/lost") is None


def test_an_axis_names_its_unit_where_there_is_one():
    assert FIGURES["speed/peak_gb"].axis == "peak memory, GB" and FIGURES["optim/gradient_norm"].axis == "gradient norm"


def test_every_figure_has_a_title_of_its_own_and_says_when_it_is_written():
    assert len({figure.title for figure in FIGURES.values()}) == len(FIGURES)
    for name, figure in FIGURES.items():
        assert figure.title and figure.when and figure.by and figure.better in ("higher", "lower", ""), name
        with pytest.raises(dataclasses.FrozenInstanceError):
            figure.title = "another"
