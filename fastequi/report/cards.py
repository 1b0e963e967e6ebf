"""What was run, a card for each run: its figures first, then model, time, machine and damage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastequi.data.channels import RGB
from fastequi.report import findings
from fastequi.report.markup import duration, number, tag, text
from fastequi.report.runs import Run

PALETTE = 8  # colours in report.css


def letter(i: int) -> str:
    """A, B, ..., Z, A2, B2, ..."""
    return chr(65 + i % 26) + (str(i // 26 + 1) if i >= 26 else "")


def badge(i: int) -> str:
    """A run's letter in its colour, as markup."""
    return tag("span", letter(i), class_=f"badge c{i % PALETTE}")


def cards(runs: Sequence[Run], notes: Sequence[str]) -> str:
    """A card for every run, and what else should be said."""
    made = []
    for i, run in enumerate(runs):
        figures = [
            tag(
                "div",
                tag("dt", text(what)),
                tag("dd", tag("b", text(value)), tag("small", text(against))),
            )
            for what, value, against in _safely(run)
        ]
        facts = [
            tag("div", tag("dt", text(name)), tag("dd", text(value)))
            for name, value in _facts(run).items()
        ]
        warnings = [tag("p", text(note), class_="warning") for note in run.notes]
        heading = tag("h3", badge(i), " ", text(run.name))
        figure = tag("dl", *figures, class_="figures") if figures else ""
        made.append(tag("article", heading, figure, tag("dl", *facts, class_="facts"), *warnings))
    said = [tag("p", text(note), class_="warning") for note in notes]
    return tag("div", *made, class_="cards") + "".join(said)


def _safely(run: Run) -> list[tuple[str, str, str]]:
    """Headline figures, of which a damaged file has none; its own section says so."""
    try:
        return findings.headline(run)
    except findings.DAMAGED:
        return []


def _facts(run: Run) -> dict[str, str]:
    flat = run.flat()
    facts = {"method": method_words(flat)}
    if "model.name" in flat:
        facts["model"] = model_words(flat)
    facts["steps"] = f"{run.steps:,}" if run.rows else "none logged"
    if run.rows and "epoch" in run.rows[-1]:
        facts["steps"] += f", to epoch {run.rows[-1]['epoch']:.0f}"
    facts["wall time"] = duration(run.seconds) if run.seconds is not None else "not recorded"
    speed = sorted(y for _, y in run.series("images_per_s"))
    if speed:
        facts["speed"] = f"{number(speed[len(speed) // 2])} images/s (median)"
    loss = run.series("loss")
    if loss:
        facts["loss"] = f"{number(loss[0][1])} → {number(loss[-1][1])}"
    if not run.machine:
        return facts | {"machine": "not recorded"}
    device = run.machine.get("device", "")
    facts["machine"] = run.machine.get("cpu", "") + (f"; {device}" if device != "cpu" else "")
    versions = {k: v for k, v in run.machine.items() if k not in ("cpu", "device")}
    return facts | {"versions": ", ".join(f"{name} {value}" for name, value in versions.items())}


def method_words(flat: dict[str, object]) -> str:
    """The method of a flat config, in the words of its papers."""
    if flat.get("method") != "tir":
        known = {"rotnet": "RotNet", "gtsa": "GTSA"}
        return known.get(str(flat.get("method")), "config.json is missing")
    names = {"vicreg": "VICReg", "simclr": "SimCLR", "dino": "DINO", "ibot": "iBOT"}
    base = str(flat.get("tir.base"))
    base = names.get(base, {"dinov2": "DINOv2"}.get(base, base))
    if base == "distillation":
        base = f"distillation from {Path(str(flat.get('teacher.path'))).name}"
    if not (flat.get("tir.num_steps") and flat.get("tir.equi_dim")):
        return base
    family = {"se2": "SE(2)"}.get(str(flat.get("path.family")), flat.get("path.family"))
    return f"TIR on {base}, {family} path, K = {flat['tir.num_steps']}"


def model_words(flat: dict[str, object]) -> str:
    """The network of a flat config and the size of its images."""
    sizes = {"embed_dim": "wide", "depth": "deep", "num_heads": "heads"}
    parts = [f"{flat[f'model.{k}']} {word}" for k, word in sizes.items() if flat.get(f"model.{k}")]
    name, images = str(flat["model.name"]), f"{flat.get('data.image_size')} px"
    if flat.get("data.channels", RGB) != RGB:
        images += f", channels {flat['data.channels']}"
    if name.startswith("vit_"):
        images = f"{flat.get('model.patch_size')} px patches of {images}"
    return ", ".join([name, *parts, images])
