"""Curves as SVG: points where they belong, text as text, the page's own colours, and names that no other chart has."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest

from mpp.pages.charts import INK, LINE, Chart, draw, thinned


def test_a_long_line_is_thinned_evenly_with_both_ends():
    points = [(float(at), float(at) ** 2) for at in range(10_001)]
    short = thinned(points, 100)
    assert len(short) == 100 and short[0] == points[0] and short[-1] == points[-1]
    gaps = {round(after[0] - before[0]) for before, after in itertools.pairwise(short)}
    assert gaps <= {101, 102, 100} and thinned(points[:50], 100) == points[:50]


def chart(**more):
    return Chart("loss <of> a run", {"training": [(0.0, 1.0), (50_000.0, 0.5), (100_000.0, 0.25)], "nothing": []}, "loss", **more)


def test_it_is_well_formed_with_its_words_as_text_and_no_colour_or_address_of_its_own():
    svg = str(draw(chart(level=("trivial", 0.75), band=("range", [0, 100_000], [0.2, 0.2], [0.6, 0.6]))))
    root = ElementTree.fromstring(svg)
    words = " ".join(filter(None, (each.text for each in root.iter())))
    assert "loss <of> a run" in words and "samples seen" in words and "trivial" in words and "100k" in words and "range" in words
    assert "nothing" not in words  # a line without a point
    assert INK not in svg and LINE not in svg and "currentColor" in svg
    assert not re.search(r'(?:href|src)="(?!#)', svg.replace('xmlns:xlink="http://www.w3.org/1999/xlink"', ""))
    assert "width=" not in svg[: svg.index(">")]  # it fits its place


def test_two_charts_on_one_page_share_no_name():
    names = [set(re.findall(r'\bid="([^"]+)"', str(draw(chart())))) for _ in range(2)]
    assert names[0] and not names[0] & names[1]
    svg = str(draw(chart()))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= set(re.findall(r'\bid="([^"]+)"', svg))


def test_a_line_goes_where_its_points_are():
    """Right is more samples, down is less: the points of a line in the drawing keep the order of the figures."""
    svg = str(draw(Chart("t", {"a": [(0.0, 0.0), (10.0, 5.0), (20.0, 5.0)]})))
    (path,) = [d for d in re.findall(r'<path d="([^"]+)"[^>]*style="fill: none; stroke: #0072b2', svg, re.I)]
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, point)) for point in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
    assert x1 - x0 == pytest.approx(x2 - x1) and x1 > x0 and y1 < y0 and y1 == pytest.approx(y2)


def test_many_lines_are_shaded_in_their_order_and_the_legend_names_the_ends():
    svg = str(draw(Chart("t", {f"block {at:02d}": [(0.0, float(at)), (1.0, float(at))] for at in range(12)})))
    assert "block 00" in svg and "block 11" in svg and "block 05" not in svg
    assert len(set(re.findall(r"fill: none; stroke: (#\w+)", svg))) >= 12


def test_one_point_has_one_mark_on_the_axis_of_samples():
    words = [
        each.text
        for each in ElementTree.fromstring(str(draw(Chart("t", {"a": [(5000.0, 1.0)], "b": [(5000.0, 2.0)]})))).iter()
        if each.text
    ]
    assert "5k" in words and not [word for word in words if word.strip().endswith(("m", "k")) and word != "5k"]
