"""The report: one HTML page that needs neither network nor scripts."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from importlib import resources

from fastequi.evaluate.geometry.kinds import KINDS as GEOMETRY
from fastequi.report import findings, geometry, sections
from fastequi.report.cards import PALETTE, badge, cards, letter
from fastequi.report.charts import Curve, curves
from fastequi.report.markup import table, tag, text
from fastequi.report.pictures import pictures
from fastequi.report.runs import Run, differing
from fastequi.report.sheets import Sheet

_SPEED = ("images_per_s", "data_wait")
_ABOUT = {
    "loss": "what training minimises",
    "ssl": "the base method's loss",
    "recon": "squared error of the predicted images, normalised units",
    "inv": "invariance term",
    "var": "variance term",
    "cov": "covariance term",
    "class": "loss on class tokens",
    "patch": "loss on masked patches",
    "anchor": "distance of patch features from the run's first ones",
    "koleo": "how evenly features spread",
    "std": "features' spread over images; near 0 is collapse",
    "teacher_entropy": "of the teacher's distribution, nats",
    "prototypes": "how many the teacher uses",
    "grad_norm": "gradient norm before clipping",
    "lr": "learning rate",
    "accuracy": "share of rotations predicted correctly",
    "images_per_s": "the whole loop, data included",
    "data_wait": "share of the time spent awaiting data",
    "skipped": "steps left out so far: their loss or gradient was not finite",
    "overflowed": "steps left out so far: their gradients overflowed in float16",
    "loss_scale": "factor of the loss against underflow in float16",
    "quarantined": "images left out so far: they cannot be decoded",
}

_HOW = (
    "R² of the transformation between two images, predicted by probes from the frozen features of "
    "both: 1 is exact, 0 is the mean predictor. Every kind of features is shown by its best probe. "
    "Whiskers are 95 % intervals over the test photographs; hollow bars are baselines, which need "
    "no training."
)


def page(
    runs: Sequence[Run],
    sheets: dict[str, dict[str, Sheet]],
    notes: Sequence[str],
    stamp: str,
) -> str:
    """The whole document.

    Args:
        runs: in the order of their letters.
        sheets: of a run by its name; a run may have none.
        notes: further warnings, such as why there are no pictures.
        stamp: when and with which version it was written.
    """
    shown = {
        "runs": ("Runs", cards(runs, notes)),
        "training": ("Training", _training(runs)),
        "equivariance": ("Transformations predicted from the features", _equivariance(runs)),
        "geometry": ("Geometry of the tokens", _geometry(runs)),
        "classes": ("Classes predicted from the features", _classes(runs)),
        "reconstruction": ("Reconstruction", _reconstruction(runs)),
        "pictures": ("Pictures", _pictures(runs, sheets)),
        "settings": ("Settings", _settings(runs)),
    }
    shown = {name: section for name, section in shown.items() if section[1]}
    title = ", ".join(run.name for run in runs)
    nav = tag(
        "nav",
        *(tag("a", text(name.capitalize()), href=f"#{name}") for name in shown),
        aria_label="Sections",
    )
    body = [
        tag(
            "section",
            tag("h2", text(heading), id=f"{name}-heading"),
            inner,
            id=name,
            aria_labelledby=f"{name}-heading",
        )
        for name, (heading, inner) in shown.items()
    ]
    css = resources.files("fastequi.report").joinpath("report.css").read_text()
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", text(f"{title} · fastequi")),
        tag("style", css),
    )
    kicker, lede = (
        tag("p", "fastequi report", class_="kicker"),
        tag("p", text(stamp), class_="note"),
    )
    header = tag("header", kicker, tag("h1", _names(runs)), lede, nav)
    document = tag("html", head, tag("body", header, tag("main", *body)), lang="en")
    return f"<!doctype html>\n{document}\n"


def _names(runs: Sequence[Run]) -> str:
    """The runs' names for the heading; of many, how many."""
    if len(runs) > 4:
        return f"{len(runs)} runs"
    return ", ".join(tag("span", text(run.name)) for run in runs)


def _named(runs: Sequence[Run], i: int) -> str:
    """A run's heading inside a section; a page of one run needs none."""
    return tag("h3", badge(i), " ", text(runs[i].name)) if len(runs) > 1 else ""


def _training(runs: Sequence[Run]) -> str:
    metrics = dict.fromkeys(metric for run in runs for metric in run.metrics)
    first = [m for m in ("loss", "ssl", "recon") if m in metrics]
    last = [m for m in ("grad_norm", "lr") if m in metrics]
    rest = [m for m in metrics if m not in (*first, *last, *_SPEED)]
    charts = [_metric(runs, metric) for metric in (*first, *rest, *last)]
    speed = [_metric(runs, metric) for metric in _SPEED if metric in metrics]
    how = "Thin lines are what was logged, thick ones the running mean over a tenth of the run."
    parts = [_legend(runs), tag("p", how, class_="note"), tag("div", *charts, class_="panels")]
    if speed:
        parts += [tag("h3", "Throughput"), tag("div", *speed, class_="panels")]
    lacking = _missing(
        runs, lambda run: run.rows, "logged steps", "fastequi pretrain RECIPE --data PATH"
    )
    return ("".join(parts) if charts else "") + lacking


def _metric(runs: Sequence[Run], metric: str) -> str:
    found = [
        Curve(letter(i), i % PALETTE, run.series(metric))
        for i, run in enumerate(runs)
        if run.series(metric)
    ]
    probes = {"knn": "accuracy of an online kNN probe", "r2": "R² of an online token probe"}
    about = _ABOUT.get(metric, probes.get(metric.split("_")[0], ""))
    caption = tag("figcaption", tag("b", text(metric.replace("_", " "))), " ", text(about))
    if not found:
        return tag("figure", caption, tag("p", "No finite value.", class_="note"), class_="panel")
    chart = curves(found, metric, percent=metric == "data_wait", exact=metric == "lr")
    return tag("figure", caption, chart, class_="panel")


def _missing(runs: Sequence[Run], has: Callable[[Run], object], what: str, how: str) -> str:
    """Which runs lack something, and the command that makes it; of one run with its folder."""
    lacking = [i for i, run in enumerate(runs) if not has(run)]
    if not lacking:
        return ""
    names = [badge(i) if len(runs) > 1 else tag("b", text(runs[i].name)) for i in lacking]
    if len(lacking) == 1:
        how = how.replace("RUN", shlex.quote(str(runs[lacking[0]].folder)))
    note = f"No {text(what)} in {' '.join(names)}. Made by {tag('code', text(how))}."
    return tag("p", note, class_="missing")


def _legend(runs: Sequence[Run]) -> str:
    if len(runs) < 2:
        return ""
    each = [tag("li", badge(i), " ", text(run.name)) for i, run in enumerate(runs)]
    return tag("ul", *each, class_="legend", aria_label="Runs")


def _by_run(runs: Sequence[Run], show: Callable[[Run, int], list[str]]) -> str:
    parts = []
    for i, run in enumerate(runs):
        shown = show(run, i % PALETTE)
        if shown:
            parts.append(_named(runs, i) + "".join(shown))
    return "".join(parts)


def _has(run: Run, *kinds: str) -> bool:
    return any(result.kind in kinds for result in run.results.values())


def _equivariance(runs: Sequence[Run]) -> str:
    lacking = _missing(
        runs,
        lambda run: _has(run, "equivariance"),
        "R² of a transformation",
        "fastequi eval equivariance RUN",
    )
    badges = [badge(i) if len(runs) > 1 else "" for i in range(len(runs))]
    shown = findings.overview(runs, badges) + _by_run(runs, sections.equivariance)
    return (tag("p", text(_HOW), class_="note") if shown else "") + shown + lacking


def _geometry(runs: Sequence[Run]) -> str:
    lacking = _missing(
        runs,
        lambda run: _has(run, *GEOMETRY),
        "evaluation of its tokens' geometry",
        "fastequi eval match RUN --data PHOTOS",
    )
    return _by_run(runs, geometry.geometry) + lacking


def _classes(runs: Sequence[Run]) -> str:
    lacking = _missing(
        runs,
        lambda run: _has(run, *findings.CLASSES),
        "kNN or linear probe",
        "fastequi eval knn RUN --data PATH",
    )
    return _by_run(runs, sections.classes) + lacking


def _reconstruction(runs: Sequence[Run]) -> str:
    def has(run: Run) -> bool:
        nothing = run.config.get("method") != "tir"
        return nothing or _has(run, "reconstruct")

    lacking = _missing(
        runs,
        has,
        "PSNR, SSIM and spectra",
        "fastequi eval reconstruct RUN",
    )
    return _by_run(runs, lambda run, _: sections.reconstruction(run)) + lacking


def _pictures(runs: Sequence[Run], sheets: dict[str, dict[str, Sheet]]) -> str:
    found = {run.name: pictures(run, sheets.get(run.name, {})) for run in runs}
    lacking = _missing(
        runs, lambda run: found[run.name], "pictures", "fastequi report RUN, without --no-pictures"
    )
    return _by_run(runs, lambda run, _: found[run.name]) + lacking


def _settings(runs: Sequence[Run]) -> str:
    parts = []
    if len(runs) > 1:
        fields = differing(runs)
        head = ["field", *(f"{badge(i)} {text(run.name)}" for i, run in enumerate(runs))]
        rows = [[tag("code", text(name)), *map(_value, each)] for name, each in fields.items()]
        if rows:
            caption = "What differs between the runs; every other setting is the same"
            parts.append(table(caption, head, rows, numbers=len(head)))
        else:
            parts.append(tag("p", "The runs have the same settings.", class_="note"))
    for i, run in enumerate(runs):
        if not run.config:
            continue
        listing = tag("pre", tag("code", text(json.dumps(run.config, indent=1))), tabindex=0)
        heading = f"Every setting of {text(run.name)}"
        mark = f"{badge(i)} " if len(runs) > 1 else ""
        parts.append(tag("details", tag("summary", mark + heading), listing))
    others = _by_run(runs, lambda run, _: sections.others(run))
    return "".join(parts) + (tag("h3", "Other results") + others if others else "")


def _value(value: object) -> str:
    return text("–" if value is None else json.dumps(value).strip('"') or '""')
