"""The report's charts and how it writes figures."""

import math
import re
from xml.etree import ElementTree

import pytest

from fastequi.report.cards import letter
from fastequi.report.charts import Bar, Curve, bars, curves, gains, standalone
from fastequi.report.markup import duration, number, two


def test_bars_mark_baselines_and_whiskers_end_at_the_interval():
    rows = [
        Bar(label="raw", value=0.5, interval=(0.4, 0.6), is_baseline=True),
        Bar(label="ours", value=0.8, interval=(0.75, 0.9), color=3),
    ]
    svg = bars(rows, "R²")
    assert svg.count('class="baseline"') == 1
    assert svg.count("strongest baseline") == 1
    assert svg.count('class="bar c3"') == 1
    assert "raw (baseline) 0.50, 95 % 0.40 to 0.60; ours 0.80, 95 % 0.75 to 0.90" in svg
    boxes = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    whiskers = re.findall(
        r'<line x1="([\d.]+)" x2="([\d.]+)" y1="(.*?)" y2="\3" class="whisker"', svg
    )
    zero, width = float(boxes[0][0]), float(boxes[0][1]) / 0.5
    for (start, end, _), (low, high) in zip(whiskers, ((0.4, 0.6), (0.75, 0.9)), strict=True):
        assert float(start) == pytest.approx(zero + low * width, abs=0.2)
        assert float(end) == pytest.approx(zero + high * width, abs=0.2)
    assert float(boxes[1][1]) == pytest.approx(0.8 * width, abs=0.2)


def test_a_bar_without_an_interval_has_no_whiskers():
    svg = bars([Bar(label="ours", value=0.8, interval=None)], "R²")
    assert "whisker" not in svg
    assert "95 %" not in svg
    assert 'aria-label="R²: ours 0.80"' in svg


def test_gains_lie_left_and_right_of_zero():
    svg = gains([("most texture", 2.0), ("least", -4.0)], "by texture", "dB")
    assert "by texture, dB: most texture +2.0; least -4.0" in svg
    assert "+2.0" in svg
    assert "−4.0" in svg
    bars = [
        (float(x), float(w)) for x, w in re.findall(r'<rect x="([\d.]+)"[^>]*width="([\d.]+)"', svg)
    ]
    (right, wide), (left, wider) = bars
    assert left + wider == pytest.approx(right, abs=0.2)  # both end at zero
    assert wider == pytest.approx(2 * wide, abs=0.3)
    assert left >= 0
    assert right + wide <= 360


def test_values_far_out_stay_inside_the_chart():
    lost = Bar(label="lost", value=-40.0, interval=(-90.0, -5.0))
    svg = bars([lost, Bar(label="wild", value=7.0, interval=(6.0, 8.0))], "R²")
    assert "−40.00" in svg
    assert all(-1 <= float(x) <= 361 for x in re.findall(r' x[12]?="([-\d.]+)"', svg))


@pytest.mark.parametrize("n", [1, 2, 7, 5000])
def test_curves_of_any_length_stay_inside_the_chart(n):
    points = [(i + 1, 2 + math.sin(i) * (i % 97 == 0)) for i in range(n)]
    svg = curves([Curve("A", 0, points), Curve("B", 1, points)], "loss")
    lines = re.findall(r'points="(.*?)"', svg)
    assert len(lines) == 4
    for line in lines:
        numbers = [float(v) for v in line.replace(",", " ").split()]
        assert len(numbers) <= 2 * 250
        assert all(0 <= v <= 360 for v in numbers)
    spikes = min(float(pair.split(",")[1]) for pair in lines[0].split())
    assert n < 98 or spikes < 60  # thinned out, its extremes are still there
    assert "loss over" in svg


def test_axes_are_logarithmic_where_values_tower_over_their_median():
    svg = curves([Curve("A", 0, [(i, 1000.0 / i**2) for i in range(1, 100)])], "loss")
    assert ">1,000<" in svg
    assert ">10<" in svg


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1234567, "1.23e6"), (12345, "12,345"), (0.02134, "0.0213"), (-3e-7, "−3e−7")],
)
def test_numbers_as_people_read_them(value, shown):
    assert number(value) == shown


def test_durations_and_letters():
    assert [duration(s) for s in (42.4, 210, 7510)] == ["42 s", "3 min 30 s", "2 h 5 min"]
    assert [letter(i) for i in (0, 25, 26)] == ["A", "Z", "A2"]
    assert two(-0.001) == "0.00"


def test_curves_over_blocks_mark_whole_numbers_and_are_never_logarithmic():
    svg = curves([Curve("E", 0, [(0, 0.01), (1, 0.01), (2, 0.9)])], "x", exact=True, over="blocks")
    assert "x over 2 blocks: E from 0.01 to 0.9" in svg
    assert re.findall(r'text-anchor="middle">(.*?)<', svg) == ["0", "1", "2"]
    assert ">0.5<" in svg  # an axis of shares


def test_a_drawing_of_its_own_holds_every_chart_and_its_style():
    chart = curves([Curve("A", 0, [(1, 2.0), (2, 3.0)])], "loss")
    text = standalone([("first <1>", chart), ("second", chart)], ".chart { fill: none }")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(root.findall(".//{*}polyline")) == 4
    assert [e.text for e in root.iter("{http://www.w3.org/2000/svg}style")] == [
        ".chart { fill: none }"
    ]
    assert "first <1>" in [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    height = float(root.attrib["viewBox"].split()[3])
    assert height == 2 * (216 + 30)
