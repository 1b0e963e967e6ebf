"""The report: what it says is what the runs' files say, and it needs nothing but itself."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources

import pytest
from PIL import Image

from fastequi.evaluate.results import SCHEMA, Result
from fastequi.recipes import RECIPES
from fastequi.report.cards import method_words, model_words
from fastequi.report.findings import strongest
from fastequi.report.markup import duration, number, two
from fastequi.report.page import page
from fastequi.report.report import report
from fastequi.report.runs import differing, flatten, read_run, read_runs
from tests.support import chromium
from tests.support.configs import run_folder, small_demo
from tests.support.made_up import (
    RECONSTRUCT,
    class_row,
    equivariance,
    evaluated,
    knn,
    make_run,
    of_geometry,
    of_kind,
    of_layers,
    row_of,
    scores,
    sheets,
)


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


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    demo = RECIPES["demo"]()
    other = replace(demo, tir=replace(demo.tir, num_steps=3), optim=replace(demo.optim, lr=1))
    return evaluated(make_run(folder / "first")), evaluated(make_run(folder / "second", 40, other))


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


def test_what_every_run_logs_has_a_caption(tmp_path):
    run = make_run(tmp_path / "run")
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    row |= {"overflowed": 0, "loss_scale": 1.0, "skipped": 0, "quarantined": 0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"step": 9}))
    captions = re.findall(
        r"<figcaption><b>(.*?)</b>(.*?)</figcaption>", page(read_runs([run]), {}, [], "")
    )
    assert {"skipped", "quarantined", "overflowed", "loss scale"} <= {name for name, _ in captions}
    assert [name for name, about in captions if not about.strip()] == []


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
    css = resources.files("fastequi.report").joinpath("report.css").read_text()
    assert "prefers-color-scheme: dark" in css
    assert "@media print" in css


def test_every_figure_of_the_files_stands_on_the_page(markup, two_runs):
    found = Checked(markup).text
    for run in two_runs:
        assert run.name in found
        tasks = json.loads((run / "eval_equivariance.json").read_text())["tasks"]
        for table in tasks.values():
            for row in table["scores"]:
                for i in range(len(table["names"])):
                    value, low, high = (two(row[k][i]) for k in ("r2", "low", "high"))
                    assert f"{value} {low} to {high}" in found
        for row in json.loads((run / "eval_knn.json").read_text())["scores"]:
            assert f"{row['accuracy']:.3f} {row['low']:.3f} to {row['high']:.3f}" in found
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert f"{number(rows[0]['loss'])} → {number(rows[-1]['loss'])}" in found
        assert f"wall time {duration(rows[-1]['seconds'])}" in found
    card = (
        "gain of predicted pixels, dB +1.8 over the nearer view in its place; mean over images +0.5"
    )
    assert card in found
    assert "24.91 dB, that of the nearer view in their place 23.11 dB: pooled gain +1.8 dB" in found
    assert "pooled gain +1.8 dB (+1.2 to +2.4)." in found
    assert "across edges of patches are 1.12 times those inside (targets: 0.97)." in found
    assert "0..10° −1.4" in found
    assert "z_equi raw pair +0.07 −0.03 to +0.11" in found
    assert "PSNR 2 31.46 dB 30.89 dB" in found
    assert "SSIM 1 0.812 0.800" in found
    assert "PSNR gained +0.46 dB (+0.20 to +0.70). SSIM gained −0.001" in found
    assert "z_equi, tokens 192 118 0.298 2.6 4.0" in found
    assert "0.9124" in found  # what is not known is shown as it is
    assert "24,000 pairs" in found
    assert "Published knn top-1 (a set): DINO 0.840." in found
    assert "second: no sweep." in found
    assert "Some <CPU> & co" in found
    assert "Some <CPU>" not in markup


def test_only_what_differs_is_in_the_diff(two_runs, markup):
    assert differing(read_runs(two_runs)) == {"tir.num_steps": [2, 3], "optim.lr": [0.004, 1]}
    diff = markup[markup.index("What differs") : markup.index("Every setting of")]
    rows = re.findall(
        r"<th scope=\"row\"><code>(.*?)</code></th><td>(.*?)</td><td>(.*?)</td>", diff
    )
    assert rows == [("tir.num_steps", "2", "3"), ("optim.lr", "0.004", "1")]


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [make_run(tmp_path / parent / "run") for parent in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]
    assert len(read_runs([folders[0], folders[0]])) == 1


def test_baselines_and_other_encoders_are_not_the_runs_own():
    """Whatever encoders are called: the fields of a row say what it is."""
    for mine in ("mine", "raw", "pixels", "random init", "mean predictor 2"):
        result = Result("equivariance", mine, {})
        rows = [(None, "mean predictor", True, 0.0), (None, "raw pair", True, 0.3),
                (None, "pixel statistics", True, 0.9), ("random init (2)", "patch", True, 0.5),
                ("base", "patch", False, 0.95), (mine, "patch", False, 0.6),
                (mine, "z_equi", False, 0.7)]  # fmt: skip
        scores = [{**row_of(*row), "probe": "ridge", "mean": mean} for *row, mean in rows]
        own = {row["features"] for row in scores if result.is_own(row)}
        assert own == {"patch", "z_equi"}
        ours, baseline = strongest({"scores": scores}, result)
        assert [row["mean"] for row in ours] == [0.6, 0.7]
        assert baseline == 0.9
        assert [result.name(row) for row in scores[2:6]] == [
            *("pixel statistics", "random init (2), patch", "base, patch", "patch")
        ]


def test_other_schemas_are_named_and_left_out(tmp_path):
    run = evaluated(make_run(tmp_path / "run"))
    newer = {**knn("run"), "schema": SCHEMA + 1}
    (run / "eval_knn.json").write_text(json.dumps(newer))
    (run / "eval_old.json").write_text(json.dumps({"scores": [{"accuracy": 0.4321}], "n": 0.8765}))
    read = read_run(run)
    found = Checked(page([read], {}, [], "")).text
    assert f"eval_knn.json is left out: schema {SCHEMA + 1}, expected {SCHEMA}" in found
    assert "eval_old.json names no schema, so it is only listed, under other results" in found
    assert "knn, k=20" not in found
    assert "No kNN or linear probe in run" in found
    assert "0.4321" not in found
    assert "scores 1 entries" in found
    assert "n 0.8765" in found
    assert "mean R² of se2" in found  # the rest is shown


def test_images_that_may_have_been_seen_are_counted(tmp_path):
    run = make_run(tmp_path / "run")
    for kind, document in (
        ("equivariance", equivariance("run", {"rotation": scores(["angle"], "run")})),
        ("knn", knn("run")),
    ):
        file = run / f"eval_{kind}.json"
        for seen, said in (({"run": 0, "base": None}, 0), ({"run": 8, "base": 1000}, 1)):
            file.write_text(json.dumps({**document, "test_seen_in_training": seen}))
            found = Checked(page([read_run(run)], {}, [], "")).text
            note = "Test images with the name and the size of one: "
            note += "8 that run trained on; 1,000 that base trained on."
            assert found.count(note) == said
        file.unlink()


def test_images_that_probes_were_fitted_on_are_counted(tmp_path):
    run = make_run(tmp_path / "run")
    for count, said in ((0, 0), (1200, 1)):
        document = {**knn("run"), "test_used_for_fitting": count}
        (run / "eval_knn.json").write_text(json.dumps(document))
        found = Checked(page([read_run(run)], {}, [], "")).text
        assert found.count("Test images among those that probes were fitted on: 1,200.") == said


def test_systems_that_are_no_tir_are_named():
    for recipe, system in (("gtsa_vits16", "GTSA"), ("rotnet_nin_32", "RotNet")):
        flat = flatten(json.loads(RECIPES[recipe]().to_json()))
        assert method_words(flat) == system
    assert model_words(flat) == "nin, 32 px"


def test_a_baseline_below_zero_is_shown_as_it_is(tmp_path):
    run = make_run(tmp_path / "run")
    both = [(None, "raw pair", True, -0.0135), ("run", "z_equi", False, -0.004)]
    table = scores(["angle"], "run")
    (first, *_) = table["scores"]
    table["scores"] = [
        {**first, **row_of(*row), "probe": "ridge", "mean": mean} for *row, mean in both
    ]
    tasks = dict.fromkeys(("rotation", "se2", "translation", "color", "blur"), table)
    (run / "eval_equivariance.json").write_text(json.dumps(equivariance("run", tasks)))
    markup = page([read_run(run)], {}, [], "")
    assert "strongest baseline −0.01" in Checked(markup).text
    overview = markup[markup.index("Mean R² by the best probe") :]
    overview = overview[: overview.index("</table>")]
    assert overview.count("−0.01") == 5
    assert "<b>" not in overview  # above that baseline, but worth no more than the mean


def test_there_are_no_intervals_of_one_photograph(tmp_path):
    run = make_run(tmp_path / "run")
    for count, intervals in ((1, False), (2, True)):
        table = {**scores(["angle"], "run"), "photographs": count}
        document = equivariance("run", {"rotation": table})
        (run / "eval_equivariance.json").write_text(json.dumps(document))
        psnr = of_kind("reconstruct", "run", {**RECONSTRUCT, "photographs": {"test": count}})
        (run / "eval_reconstruct.json").write_text(json.dumps(psnr))
        markup = page([read_run(run)], {}, [], "")
        found = Checked(markup).text
        assert ('class="whisker"' in markup) == ("95 % 0" in markup) == intervals
        assert ("with 95 % intervals" in found) == intervals
        assert ("PSNR gained +0.46 dB (+0.20 to +0.70)." in found) == intervals
        assert ("PSNR gained +0.46 dB." in found) != intervals
        said = "All are of one photograph: there is no interval, as it would say nothing of others."
        assert found.count(said) == 2 * (not intervals)


def test_zero_filled_tables_are_marked_and_never_the_headline(tmp_path):
    run = make_run(tmp_path / "filled")
    tasks = {"rotation": scores(["angle"], "filled")}
    document = equivariance("filled", tasks, zero_fill=True)
    (run / "eval_equivariance_zero_fill.json").write_text(json.dumps(document))
    found = Checked(page([read_run(run)], {}, [], "")).text
    assert "reveals the transformation: only to compare" in found
    assert "mean R² of rotation" not in found  # the run's card
    (run / "eval_equivariance_zero_fill.json").rename(run / "eval_equivariance.json")
    document["budget"]["zero_fill"] = False
    (run / "eval_equivariance.json").write_text(json.dumps(document))
    found = Checked(page([read_run(run)], {}, [], "")).text
    assert "reveals the transformation" not in found
    assert "mean R² of rotation" in found


def test_damage_is_told_and_the_rest_is_shown(tmp_path):
    run = evaluated(make_run(tmp_path / "hurt"))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[1:3] = ['{"step": 20, "lo', "[3]"]
    lines.append(json.dumps({"step": 70, "loss": math.nan, "recon": 0.1}))
    (run / "metrics.jsonl").write_text("\n".join(lines))
    broken = json.loads((run / "eval_equivariance.json").read_text())
    (run / "eval_equivariance.json").write_text("{")
    del broken["tasks"]["rotation"]["scores"][0]["low"]
    (run / "eval_broken.json").write_text(json.dumps(broken))
    (run / "config.json").write_text("[]")
    read = read_run(run)
    assert [row["step"] for row in read.rows] == [10, 40, 50, 60, 70]
    found = Checked(page([read], {}, [], "")).text
    assert "metrics.jsonl: 2 damaged lines left out (lines 2, 3), 5 read" in found
    assert "metrics.jsonl: 1 line holds NaN" in found
    assert "eval_equivariance.json cannot be read" in found
    assert "eval_broken.json is not as expected (KeyError: 'low'), so not shown" in found
    assert "config.json: expected an object, got a list" in found
    assert "0.873" not in found
    assert "knn, k=20" in found


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    run = make_run(tmp_path / "bare", machine=None)
    (run / "metrics.jsonl").write_text("")
    found = Checked(page(read_runs([run]), {}, [], "")).text
    assert f"fastequi eval equivariance {run}" in found
    assert f"fastequi eval knn {run} --data PATH" in found
    assert f"fastequi eval reconstruct {run}" in found
    assert "metrics.jsonl is empty" in found
    assert "machine not recorded" in found
    with pytest.raises(FileNotFoundError, match=r"RUN: .*nowhere does not exist"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected a run's folder"):
        read_run(tmp_path / "empty")


def test_names_are_escaped(tmp_path):
    run = evaluated(make_run(tmp_path / "<u>&\"'x"))
    markup = page(read_runs([run]), {"<u>&\"'x": sheets()}, ["<u>: no"], "")
    assert "<u>" not in markup
    assert "<u>&\"'x" in Checked(markup).text


def test_rotnet_is_shown_with_its_rotations(tmp_path):
    run = make_run(tmp_path / "rot", config=RECIPES["rotnet_nin_32"]())
    rows = [
        class_row((None, "raw pixels", True), "linear", 0.8379),
        class_row(("rot", "block2", False), "non-linear", 0.8379, labels_per_class=10),
    ]
    each = {"0": 0.98, "90": 0.97, "180": 0.98, "270": 0.97}
    rotations = [
        {**row_of(None, "chance", True), "accuracy": 0.25, "by_rotation": {}},
        {**row_of("rot", "classifier", False), "accuracy": 0.9781, "by_rotation": each},
        {**row_of("base", "classifier", False), "accuracy": 0.5, "by_rotation": each},
    ]
    document = {**knn("rot"), "kind": "rotnet", "scores": rows, "rotation_accuracy": rotations}
    (run / "eval_rotnet.json").write_text(json.dumps(of_kind("rotnet", "rot", document)))
    found = Checked(page(read_runs([run]), {}, [], "")).text
    assert "rot, block2" in found
    assert "non-linear, 10 labels a class" in found
    assert "rotation accuracy 0.978 chance 0.250" in found
    assert "chance 0.250; rot 0.978 (0° 0.980, 90° 0.970, 180° 0.980, 270° 0.970)" in found
    assert "base 0.500" in found
    assert "0.838 0.818 to 0.858" in found


def test_the_command_makes_its_pictures_from_the_checkpoint(tmp_path, capsys):
    run = make_run(tmp_path / "run", config=small_demo())
    run_folder(run, small_demo())
    out = report([run], tmp_path / "new" / "report.html")
    assert str(out) in capsys.readouterr().out
    found = Checked(out.read_text())
    assert found.tags.count("img") == 6 * 6 + 9 * 2 + 6 * 3 + 3 * 7
    assert "Principal components of the patches" in found.text
    report([run], out, pictures=False)
    assert "img" not in Checked(out.read_text()).tags


def test_a_run_without_checkpoints_shows_what_its_demo_left(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    Image.new("RGB", (300, 100), "red").save(run / "reconstructions.png")
    found = Checked(report([run], tmp_path / "report.html").read_text())
    assert found.tags.count("img") == 1
    said = "run: no pictures of its features (run has no checkpoint yet)"
    assert said in found.text
    assert said in capsys.readouterr().out


def luminance(color):
    full = color if len(color) == 7 else "#" + "".join(2 * c for c in color[1:])
    parts = [int(full[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["light", "dark", "print"])
def test_contrast_is_enough_in_every_mode(mode):
    css = resources.files("fastequi.report").joinpath("report.css").read_text()
    colors = dict(
        re.findall(r"--([\w-]+): (#\w+);", re.findall(r":root \{(.*?)\}", css, re.S)[mode])
    )

    def contrast(a, b):
        low, high = sorted((luminance(colors[a]), luminance(colors[b])))
        return (high + 0.05) / (low + 0.05)

    for ground in ("paper", "card"):
        for ink in ("ink", "muted", *(f"c{i}" for i in range(8))):
            assert contrast(ink, ground) >= 4.5, (ink, ground)
        assert contrast("baseline-edge", ground) >= 3
    assert contrast("warn", "warn-paper") >= 4.5


@pytest.mark.skipif(chromium.find() is None, reason="needs Chromium or Chrome on the PATH")
@pytest.mark.parametrize("many", [False, True], ids=["two", "many"])
def test_a_browser_shows_it_on_a_phone_and_a_desk_without_complaint(markup, tmp_path, many):
    file = tmp_path / "report.html"
    if many:  # with names as long as they come
        names = [f"tir_vicreg_vits16-rotation-20261121-{i:06}" + "-again" * i for i in range(10)]
        runs = [make_run(tmp_path / name, 30 + 10 * i) for i, name in enumerate(names)]
        markup = page(read_runs([evaluated(runs[0]), *runs[1:]]), {names[1]: sheets()}, [], "")
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


def test_geometry_is_shown_in_charts_and_whole_tables(tmp_path):
    run = make_run(tmp_path / "geo")
    (run / "eval_match.json").write_text(json.dumps(of_geometry("match", "geo", ("se2", "blur"))))
    (run / "eval_layers.json").write_text(json.dumps(of_layers("geo")))
    found = Checked(page(read_runs([run]), {}, [], ""))
    assert "Geometry of the tokens" in found.text
    labels = [value for _, name, value in found.attributes if name == "aria-label" and value]
    bars = "raw patches (baseline) 0.40, 95 % 0.30 to 0.50"
    assert sum(f"geo, se2, recall, 1 patch: {bars}" in label for label in labels) == 1
    assert sum(f"geo, blur, recall, 1 patch: {bars}" in label for label in labels) == 1
    (turns,) = (label for label in labels if label.startswith("geo, turns: cosines of tokens"))
    assert "over 2 blocks" in turns
    assert "E from 0 to 0.2; I from 0.9 to 0.5; e from 0 to 0.2" in turns  # no P: never defined
    assert "0.600 0.500 to 0.700 2.0 1.9 to 2.1" in found.text
    assert "40 images of 8 photographs, with 95 % intervals" in found.text
    assert "recall, 1 patch, se2" in found.text  # of the run's card
    assert "strongest baseline 0.400" in found.text
    assert "evaluation of its tokens' geometry" not in found.text
    single = of_geometry("match", "geo", photographs=1)
    (run / "eval_match.json").write_text(json.dumps(single))
    found = Checked(page(read_runs([run]), {}, [], ""))
    assert "All are of one photograph" in found.text
    assert "0.500 to 0.700" not in found.text
    del single["tables"]["se2"]["figures"]
    (run / "eval_match.json").write_text(json.dumps(single))
    found = Checked(page(read_runs([run]), {}, [], ""))
    assert "eval_match.json is not as expected (KeyError: 'figures'), so not shown" in found.text


def test_a_page_without_geometry_says_how_it_is_made(tmp_path):
    runs = [make_run(tmp_path / name) for name in ("bare", "bare too")]
    found = Checked(page(read_runs(runs[1:]), {}, [], "")).text
    assert f"fastequi eval match '{runs[1]}' --data PHOTOS" in found
    found = Checked(page(read_runs(runs), {}, [], "")).text
    assert "fastequi eval match RUN --data PHOTOS" in found  # of several
