"""The model card of an export: what it is, what its run's folder says of it, how it is loaded.

Nothing is in it that is not found: no figure, no licence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fastequi import __version__
from fastequi.data.channels import DTYPE, RGB
from fastequi.data.sources import kept
from fastequi.export.pretrained import PretrainedEncoder
from fastequi.export.subject import FOLDER, Subject, Written
from fastequi.report import findings
from fastequi.report.cards import method_words, model_words
from fastequi.report.markup import duration, number
from fastequi.report.runs import Run, read_run
from fastequi.runtime.checkpoint import step_of

NAME = "README.md"

_NO_FIGURES = ("step", "epoch", "seconds", "lr", "images_per_s", "data_wait")


def made_by(to: str) -> str:
    """The words by which a card of this format is known."""
    return f"Written by `fastequi export --to {to}`"


def run_of(path: Path) -> Run | None:
    """The run that a checkpoint belongs to, with what is known of that checkpoint.

    Args:
        path: a run's folder, a step's or the run's model.safetensors.

    Returns:
        None: it is no run's. Of a step the run has the rows up to it, and the results in its own
        folder; of others those in the run's folder.
    """
    is_step = (path / "state.json").is_file()
    folder = path.parent.parent if is_step else path if path.is_dir() else path.parent
    is_own = path.is_dir() or path.name == "model.safetensors"
    if not is_own or not (folder / "checkpoints").is_dir():
        return None
    run = read_run(folder)
    found = {
        name: result
        for name, result in run.results.items()
        if name.startswith(f"checkpoints/{path.name}/" if is_step else "eval")
    }
    rows = run.rows
    if is_step:
        rows = tuple(row for row in rows if row["step"] <= step_of(path))
    return replace(run, results=found, rows=rows)


def card(subject: Subject, written: Written, to: str, run: Run | None) -> str:
    """The text of README.md.

    Args:
        subject: that was exported.
        written: of its format.
        to: the format's name.
        run: that it is from; None: not known.
    """
    library = [f"library_name: {written.library}"] if written.library else []
    head = ["---", *library, "pipeline_tag: image-feature-extraction", "tags: [fastequi]", "---"]
    name = subject.encoder.name
    parts = [
        "\n".join(head),
        f"# {name}",
        f"{_kind(subject)}, as {written.what}. {made_by(to)} of fastequi {__version__}; its tokens "
        f"differ from the encoder's by at most {written.difference:.1g} ({written.checked}).",
        f"## Use\n\n`{FOLDER}` is the folder of this file.\n\n```python\n{written.code}```",
        _images(subject),
        _tokens(subject),
        *written.notes,
        "## Training",
        *(_training(run) if run is not None else ["What it was trained on is not known here."]),
        *(_figures(run) if run is not None else []),
        "## Licence",
        "Not stated. Whoever publishes these weights says it here and as `license:` at the top; "
        "what they are made from (images, weights of others) may have terms of its own.",
    ]
    return "\n\n".join(parts) + "\n"


def _kind(subject: Subject) -> str:
    options = subject.options
    height, width = subject.encoder.image_size
    parameters = sum(tensor.numel() for tensor in subject.state.values())
    parts = [
        f"A vision transformer of {parameters:,} parameters: {options['embed_dim']} wide",
        f"{options['depth']} deep, {options['num_heads']} heads",
        f"{options['patch_size']} px patches of {height}x{width} px images",
    ]
    if options["pos"] == "rope":
        parts.append("rotary positions")
    return ", ".join(parts)


def _images(subject: Subject) -> str:
    encoder = subject.encoder
    height, width = encoder.image_size
    mean, std = (", ".join(f"{value:.6g}" for value in v) for v in (encoder.mean, encoder.std))
    if encoder.channels != RGB:
        return (
            f"Images: {_values(encoder)}. In 0..1 they are resized with antialiasing (bilinear) to "
            f"just cover {height}x{width} px, the centre is cut out, the mean ({mean}) is "
            f"subtracted, and the rest divided by the standard deviation ({std})."
        )
    return (
        f"Images: RGB, resized with antialiasing (bilinear) to just cover {height}x{width} px, the "
        f"centre cut out; values divided by 255, minus the mean ({mean}), divided by the standard "
        f"deviation ({std})."
    )


def _values(encoder: PretrainedEncoder) -> str:
    """Which channels of a file are expected, and which values become 0 and 1."""
    listed = encoder.channels.replace(",", ", ")
    if encoder.value_range == DTYPE:
        ends = "all that the type holds (0..255, 0..65535, of floats 0..1)"
    else:
        ends = f"{encoder.value_range} (lower and upper end, for all channels or for each)"
    return (
        f"{encoder.in_chans} channels, in this order those that a file counts from 0 as {listed} "
        f"(`data.channels`); {ends} becomes 0..1 (`data.value_range`). "
        f'`fastequi.data.read_image(FILE, "{encoder.channels}")` reads them; it inverts '
        f"MINISWHITE TIFF and MONOCHROME1 DICOM, as the run did"
    )


def _tokens(subject: Subject) -> str:
    options = subject.options
    prefix = ["the class token"] if options["class_token"] else []
    if options["reg_tokens"]:
        prefix.append(f"{options['reg_tokens']} registers")
    first = f"{', then '.join(prefix)}, then " if prefix else ""
    return f"Tokens [B, N, {options['embed_dim']}]: {first}the patches, row by row."


def _training(run: Run) -> Iterator[str]:
    """What the run's folder says of how the weights came about, as one list."""
    flat = run.flat()
    facts = {"recipe": str(flat["recipe"])} if flat.get("recipe") else {}
    facts |= {"method": method_words(flat), "network": model_words(flat)}
    if flat.get("init.path"):
        start = Path(str(flat["init.path"])).name
        facts["started from"] = f"{start}, SHA-256 {flat.get('init.sha256') or 'not recorded'}"
    if (count := kept.count(run.folder)) is not None:
        facts["images"] = f"{count:,}"
    if "data.batch_size" in flat:
        facts["batch"] = f"{flat['data.batch_size'] * flat.get('train.accumulate', 1):,} images"
    if run.rows:
        last = run.rows[-1]
        facts["steps"] = f"{run.steps:,}"
        if "epoch" in last:
            facts["steps"] += f", to epoch {last['epoch']:.0f}"
        if "seconds" in last:
            facts["time"] = duration(last["seconds"])
    where = dict(run.machine)
    facts["commit"] = where.pop("commit", "")
    facts["machine"] = ", ".join(where.pop(k) for k in ("cpu", "device") if k in where)
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in where.items())
    facts = {name: value or "not recorded" for name, value in facts.items()}
    yield "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _figures(run: Run) -> Iterator[str]:
    """The last logged values, and the headline of each result file."""
    yield "## Figures found in the run"
    if run.rows:
        last = {k: v for k, v in run.rows[-1].items() if k not in _NO_FIGURES and math.isfinite(v)}
        shown = ", ".join(f"{name} {number(value)}" for name, value in last.items())
        yield f"Logged at step {run.steps:,}: {shown}."
    rows = list(_headlines(run))
    if rows:
        lines = ["| figure | value | beside it | file |", "| --- | --- | --- | --- |"]
        yield "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
    else:
        yield "No evaluation lies in its folder."


def _headlines(run: Run) -> Iterator[tuple[str, str, str, str]]:
    for file, result in run.results.items():
        try:
            for what, value, beside in findings.headline(replace(run, results={file: result})):
                yield what, value, beside, file
        except findings.DAMAGED:
            continue  # `fastequi report` says what is wrong with it
