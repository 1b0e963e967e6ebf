"""The report: what it says is what the runs' files say, and it needs nothing but itself."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources

import chromium
import numpy as np
import pytest
from PIL import Image
from test_visualize import run_folder, small_demo

from fastequi.evaluate.cards import letter
from fastequi.evaluate.charts import Bar, Curve, bars, curves
from fastequi.evaluate.figures import Sheet
from fastequi.evaluate.markup import duration, number, two
from fastequi.evaluate.page import page
from fastequi.evaluate.runs import differing, read_run, read_runs
from fastequi.recipes import RECIPES
from fastequi.report import report

FEATURES = ("mean predictor", "raw pair", "random init, z_equi", "{}, z_equi", "{}, patch")
MACHINE = {"cpu": "Some <CPU> & co, 2 cores", "device": "cpu", "torch": "2.13.0"}
RECONSTRUCT = {
    "images": 512,
    "psnr": {"predicted": [29.123, 31.456], "nearer_view": [28.777, 30.888], "gain": 0.457,
             "low": 0.2, "high": 0.7},
    "ssim": {"predicted": [0.8123, 0.9], "nearer_view": [0.8, 0.91], "gain": -0.0012,
             "low": -0.01, "high": 0.007},
    "spectra": {"z_equi, tokens": {"channels": 192, "rank": 118, "variance": 0.298,
                                   "participation": 2.64, "entropy": 4.05}},
}  # fmt: skip


def scores(names, run, shift=0.0):
    rows = []
    for i, features in enumerate(FEATURES):
        for probe in ("token", "ridge"):
            r2 = [
                0.1123 * i + 0.01 * j + shift - (probe == "ridge") / 20 for j in range(len(names))
            ]
            low, high = [v - 0.031 for v in r2], [v + 0.0272 for v in r2]
            error = [22.19 - i - j for j in range(len(names))]
            row = {"features": features.format(run), "probe": probe, "r2": r2, "low": low}
            mean = {"mean_low": low[0], "mean_high": high[-1], "pooled": sum(r2) / len(r2) - 0.003}
            rows.append({**row, "high": high, "error": error, **mean, "seeds": [0.1, 0.2]})
    return {"names": names, "train_pairs": 24000, "test_pairs": 2000, "scores": rows}


def knn(run):
    rows = [
        {"features": f, "probe": f"knn, k={k}", "accuracy": a + k / 1e3, "low": a - 0.02,
         "high": a + 0.02, "seeds": [a]}
        for k in (5, 20) for f, a in (("raw pixels", 0.862), (f"{run}, patch", 0.8714))
    ]  # fmt: skip
    return {
        "encoder": run,
        "classes": 10,
        "train_images": 60000,
        "test_images": 10000,
        "scores": rows,
    }


def make_run(folder, steps=60, config=None, machine=MACHINE):
    """A folder as training, the demo and the evaluations leave it, figures made up."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((config or RECIPES["demo"]()).to_json())
    if machine:
        (folder / "machine.json").write_text(json.dumps(machine))
    g = np.random.default_rng(steps)
    rows = []
    for step in range(10, steps + 1, 10):
        loss = 3 * math.exp(-step / 30) + 0.1 * g.random()
        row = {"step": step, "epoch": step // 20, "seconds": step / 7, "lr": 1e-3, "loss": loss}
        rows.append({**row, "recon": loss / 2, "images_per_s": 700.0, "data_wait": 0.05})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def judged(folder):
    """With every result there is."""
    name = folder.name
    demo = {"psnr": {"predicted": 31.0211, "nearer_view": 30.6982}, "machine": MACHINE}
    se2 = ["angle", "tx", "ty"]
    (folder / "equivariance.json").write_text(json.dumps(demo | scores(se2, "TIR")))
    tasks = {"rotation": scores(["angle"], name, 0.02), "se2": scores(se2, name)}
    document = {"encoder": name, "machine": MACHINE, "tasks": tasks, "seconds": 71.0}
    (folder / "eval_equivariance.json").write_text(json.dumps(document))
    (folder / "eval_knn.json").write_text(json.dumps(knn(name)))
    (folder / "eval_reconstruct.json").write_text(json.dumps(RECONSTRUCT))
    (folder / "eval_new.json").write_text(json.dumps({"figure": {"of_merit": 0.91237}}))
    return folder


class Checked(HTMLParser):
    """Every element is closed, in order; gathers text, tags and attributes."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, markup):
        super().__init__()
        self.open, self.tags, self.attributes, self.words, self.ids = [], [], [], [], []
        self.feed(markup)
        self.close()
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        assert self.open.pop() == tag

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def sheets():
    tiles = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3), dtype=np.uint8)
    large = np.random.default_rng(0).integers(0, 256, (2, 2, 96, 96, 3), dtype=np.uint8)
    rows, wide = (tuple(tuple(row) for row in part) for part in (tiles, large))
    return {
        "sweep": Sheet("Turns", "Read as.", ("−45°", "+45°"), rows, (("−40°", "+41°"),) * 2),
        "pca": Sheet("Colours", "PCA.", ("image", "patch"), wide, smooth=True, wrap=True),
    }


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    demo = RECIPES["demo"]()
    other = replace(demo, method=replace(demo.method, num_steps=3), optim=replace(demo.optim, lr=1))
    return judged(make_run(folder / "first")), judged(make_run(folder / "second", 40, other))


@pytest.fixture(scope="module")
def markup(two_runs):
    return page(read_runs(two_runs), {"first": sheets()}, ["second: no sweep."], "Written now.")


def test_it_is_whole_html_that_needs_no_network_and_no_script(markup):
    found = Checked(markup)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(found.tags)
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "srcset", "data", "action", "poster"):
            assert value.startswith(("data:", "#")), (tag, name, value[:40])
    assert not re.findall(r"url\((?!data:)", markup)
    assert "@import" not in markup
    assert "http:" not in markup
    assert "https:" not in markup
    targets = [v[1:] for _, name, v in found.attributes if name == "href"]
    assert set(targets) <= set(found.ids)


def test_it_is_made_for_everyone(markup):
    found = Checked(markup)
    assert ("meta", "name", "viewport") in found.attributes
    assert ("html", "lang", "en") in found.attributes
    assert found.tags.count("svg") == found.tags.count("figure") - 2  # two sheets
    for tag, needed in (("img", "alt"), ("svg", "aria-label"), ("svg", "role")):
        given = [value for t, name, value in found.attributes if (t, name) == (tag, needed)]
        assert len(given) == found.tags.count(tag)
        assert all(given)
    assert found.tags.count("caption") == found.tags.count("table") - 1  # a sheet has a figcaption
    assert found.tags.count("h1") == 1
    css = resources.files("fastequi.evaluate").joinpath("report.css").read_text()
    assert "prefers-color-scheme: dark" in css
    assert "@media print" in css


def test_every_figure_of_the_files_stands_on_the_page(markup, two_runs):
    found = Checked(markup).text
    for run in two_runs:
        assert run.name in found
        result = json.loads((run / "equivariance.json").read_text())
        tasks = json.loads((run / "eval_equivariance.json").read_text())["tasks"]
        for table in (result, *tasks.values()):
            for row in table["scores"]:
                for i in range(len(table["names"])):
                    value, low, high = (two(row[k][i]) for k in ("r2", "low", "high"))
                    assert f"{value} {low} to {high}" in found
        for row in json.loads((run / "eval_knn.json").read_text())["scores"]:
            assert f"{row['accuracy']:.3f} {row['low']:.3f} to {row['high']:.3f}" in found
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert f"{number(rows[0]['loss'])} → {number(rows[-1]['loss'])}" in found
        assert f"wall time {duration(rows[-1]['seconds'])}" in found
    assert "31.02" in found
    assert "PSNR 2 31.46 dB 30.89 dB" in found
    assert "SSIM 1 0.812 0.800" in found
    assert "PSNR gained +0.46 dB (+0.20 to +0.70). SSIM gained −0.001" in found
    assert "z_equi, tokens 192 118 0.298 2.6 4.0" in found
    assert "0.9124" in found  # what is not known is shown as it is
    assert "24,000 pairs" in found
    assert "second: no sweep." in found
    assert "Some <CPU> & co" in found
    assert "Some <CPU>" not in markup


def test_bars_tell_floors_from_features_and_whiskers_end_at_the_interval():
    svg = bars([Bar("raw", 0.5, 0.4, 0.6, True), Bar("ours", 0.8, 0.75, 0.9, False, 3)], "R²")
    assert svg.count('class="floor"') == 1
    assert svg.count('class="bar c3"') == 1
    assert "raw (floor) 0.50, 95 % 0.40 to 0.60; ours 0.80, 95 % 0.75 to 0.90" in svg
    boxes = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    whiskers = re.findall(
        r'<line x1="([\d.]+)" x2="([\d.]+)" y1="(.*?)" y2="\3" class="whisker"', svg
    )
    zero, width = float(boxes[0][0]), float(boxes[0][1]) / 0.5
    for (start, end, _), (low, high) in zip(whiskers, ((0.4, 0.6), (0.75, 0.9)), strict=True):
        assert float(start) == pytest.approx(zero + low * width, abs=0.2)
        assert float(end) == pytest.approx(zero + high * width, abs=0.2)
    assert float(boxes[1][1]) == pytest.approx(0.8 * width, abs=0.2)


def test_values_far_out_stay_inside_the_chart():
    svg = bars([Bar("lost", -40.0, -90.0, -5.0), Bar("wild", 7.0, 6.0, 8.0)], "R²")
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


def test_only_what_differs_is_in_the_diff(two_runs, markup):
    assert differing(read_runs(two_runs)) == {"method.num_steps": [2, 3], "optim.lr": [0.008, 1]}
    diff = markup[markup.index("What differs") : markup.index("Every setting of")]
    rows = re.findall(
        r"<th scope=\"row\"><code>(.*?)</code></th><td>(.*?)</td><td>(.*?)</td>", diff
    )
    assert rows == [("method.num_steps", "2", "3"), ("optim.lr", "0.008", "1")]


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [make_run(tmp_path / parent / "run") for parent in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]
    assert len(read_runs([folders[0], folders[0]])) == 1


def test_damage_is_told_and_the_rest_is_shown(tmp_path):
    run = judged(make_run(tmp_path / "hurt"))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[1:3] = ['{"step": 20, "lo', "[3]"]
    lines.append(json.dumps({"step": 70, "loss": math.nan, "recon": 0.1}))
    (run / "metrics.jsonl").write_text("\n".join(lines))
    (run / "eval_equivariance.json").write_text("{")
    broken = json.loads((run / "equivariance.json").read_text())
    del broken["scores"][0]["low"]
    (run / "equivariance.json").write_text(json.dumps(broken))
    (run / "config.json").write_text("[]")
    read = read_run(run)
    assert [row["step"] for row in read.rows] == [10, 40, 50, 60, 70]
    found = Checked(page([read], {}, [], "")).text
    assert "metrics.jsonl: 2 damaged lines left out (lines 2, 3), 5 read" in found
    assert "metrics.jsonl: 1 line holds NaN" in found
    assert "eval_equivariance.json cannot be read" in found
    assert "equivariance.json is not as expected (KeyError: 'low'), so not shown" in found
    assert "config.json: expected an object, got a list" in found
    assert "0.873" not in found
    assert "knn, k=20" in found


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    run = make_run(tmp_path / "bare", machine=None)
    (run / "metrics.jsonl").write_text("")
    found = Checked(page(read_runs([run]), {}, [], "")).text
    assert "fastequi eval equivariance RUN" in found
    assert "fastequi eval knn RUN --data PATH" in found
    assert "fastequi eval reconstruct RUN" in found
    assert "metrics.jsonl is empty" in found
    assert "machine not recorded" in found
    with pytest.raises(FileNotFoundError, match=r"RUN: .*nowhere does not exist"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected a run's folder"):
        read_run(tmp_path / "empty")


def test_names_are_escaped(tmp_path):
    run = judged(make_run(tmp_path / "<u>&\"'x"))
    markup = page(read_runs([run]), {"<u>&\"'x": sheets()}, ["<u>: no"], "")
    assert "<u>" not in markup
    assert "<u>&\"'x" in Checked(markup).text


def test_rotnet_stands_with_its_turns(tmp_path):
    run = make_run(tmp_path / "turns", config=RECIPES["rotnet_nin_32"]())
    rows = [
        {"network": network, "block": block, "probe": probe, "per_class": few, "accuracy": 0.8379,
         "low": 0.8212, "high": 0.8535}
        for network, block, probe, few in (
            ("pixels", "", "linear", 0), ("RotNet", "block2", "non-linear", 10))
    ]  # fmt: skip
    turns = {"all": 0.9781, "0": 0.98, "90": 0.97, "180": 0.98, "270": 0.97}
    (run / "rotnet.json").write_text(json.dumps({"rotation_accuracy": turns, "classes": rows}))
    found = Checked(page(read_runs([run]), {}, [], "")).text
    assert "RotNet, block2" in found
    assert "non-linear, 10 labels a class" in found
    assert "0.978" in found
    assert "0.838 0.821 to 0.854" in found


def test_the_command_makes_its_pictures_from_the_checkpoint(tmp_path, capsys):
    run = make_run(tmp_path / "run", config=small_demo())
    run_folder(run, small_demo())
    out = report([run], tmp_path / "new" / "report.html")
    assert str(out) in capsys.readouterr().out
    found = Checked(out.read_text())
    assert found.tags.count("img") == 6 * 6 + 9 * 2 + 6 * 3 + 3 * 7
    assert "What the patches have in common" in found.text
    report([run], out, images=False)
    assert "img" not in Checked(out.read_text()).tags


def test_a_run_without_checkpoints_shows_what_its_demo_left(tmp_path):
    run = make_run(tmp_path / "run")
    Image.new("RGB", (300, 100), "red").save(run / "reconstructions.png")
    found = Checked(report([run], tmp_path / "report.html").read_text())
    assert found.tags.count("img") == 1
    assert "run: no pictures of its features (run has no checkpoint yet)" in found.text


def luminance(color):
    full = color if len(color) == 7 else "#" + "".join(2 * c for c in color[1:])
    parts = [int(full[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["light", "dark", "print"])
def test_contrast_is_enough_in_every_mode(mode):
    css = resources.files("fastequi.evaluate").joinpath("report.css").read_text()
    colors = dict(
        re.findall(r"--([\w-]+): (#\w+);", re.findall(r":root \{(.*?)\}", css, re.S)[mode])
    )

    def contrast(a, b):
        low, high = sorted((luminance(colors[a]), luminance(colors[b])))
        return (high + 0.05) / (low + 0.05)

    for ground in ("paper", "card"):
        for ink in ("ink", "muted", *(f"c{i}" for i in range(8))):
            assert contrast(ink, ground) >= 4.5, (ink, ground)
        assert contrast("floor-edge", ground) >= 3
    assert contrast("warn", "warn-paper") >= 4.5


@pytest.mark.skipif(chromium.find() is None, reason="needs Chromium or Chrome on the PATH")
@pytest.mark.parametrize("many", [False, True], ids=["two", "many"])
def test_a_browser_shows_it_on_a_phone_and_a_desk_without_complaint(markup, tmp_path, many):
    file = tmp_path / "report.html"
    if many:  # with names as long as they come
        names = [f"tir_vicreg_vits16-rotation-20261121-{i:06}" + "-again" * i for i in range(10)]
        runs = [make_run(tmp_path / name, 30 + 10 * i) for i, name in enumerate(names)]
        markup = page(read_runs([judged(runs[0]), *runs[1:]]), {names[1]: sheets()}, [], "")
    file.write_text(markup)
    with chromium.Browser() as browser:
        for width in (360, 1280):
            for dark in (False, True):
                browser.open(file, width, dark)
                scroll, client = browser.evaluate(
                    "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
                )
                assert scroll <= client == width
                ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
                assert ground == ("rgb(21, 23, 26)" if dark else "rgb(251, 250, 247)")
                browser.screenshot(tmp_path / "page.png")
                shot = Image.open(tmp_path / "page.png")
                assert shot.width == width
                assert len(shot.convert("RGB").getcolors(1 << 20)) > 200
            browser.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            small = browser.evaluate(
                "Math.min(...[...document.querySelectorAll('svg text')]"
                ".map(t => t.getBoundingClientRect().height))"
            )
            assert small >= 9.5  # CSS pixels
        loaded = [url for url in browser.requests if not url.startswith("data:")]
        assert set(loaded) == {file.as_uri()}
        assert browser.problems == []
