"""`fastequi export`: a folder that another library opens, checked before it is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from fastequi.atomic import sync
from fastequi.evaluate.results import writable_folder
from fastequi.export import card, hugging, meta, onnx, timm, torchscript
from fastequi.export.pretrained import load
from fastequi.export.subject import FOLDER, Subject, Written
from fastequi.runtime.progress import Status
from fastequi.weights.architecture import UNSTATED, Stated
from fastequi.weights.files import some


class Format(NamedTuple):
    """Another library's way to keep a network.

    Attributes:
        obstacle: why it cannot have one; None if it can.
        write: writes into an empty folder and checks what is there.
        files: the names of what it writes.
    """

    obstacle: Callable[[Subject], str | None]
    write: Callable[[Subject, Path], Written]
    files: tuple[str, ...]


FORMATS = {
    "timm": Format(timm.obstacle, timm.write, timm.FILES),
    "meta": Format(meta.obstacle, meta.write, meta.FILES),
    "hf": Format(hugging.obstacle, hugging.write, hugging.FILES),
    "onnx": Format(onnx.obstacle, onnx.write, onnx.FILES),
    "torchscript": Format(torchscript.obstacle, torchscript.write, torchscript.FILES),
}


def export(spec: str, to: str, out: Path | None = None, stated: Stated = UNSTATED) -> Path:
    """Writes the encoder of a run or a file in another library's form, and prints how it is loaded.

    It gets its name only after its tokens were compared with the encoder's.

    Args:
        spec: a run, a checkpoint, a file or a folder of weights (`fastequi.export.pretrained`).
        to: one of `FORMATS`.
        out: the folder; by default export-TO in the run's folder, or beside the file. An earlier
            export of the same format is replaced.
        stated: what a file does not say.

    Returns:
        The folder.

    Raises:
        ValueError: the format has no such network, or the folder holds something else.
        ImportError: the format needs a package that is not installed.
        RuntimeError: what was written computes other tokens.
    """
    if to == "onnx":
        onnx.expect_packages()
    path = Path(spec).expanduser()
    folder = out or _beside(path, to)
    _expect_ours(folder, to, path)
    subject = Subject.of(load(spec, stated))
    _expect_fits(to, subject)
    whole = folder.resolve()
    temporary = whole.with_name(f".{whole.name}.tmp")
    writable_folder(whole.parent)
    shutil.rmtree(temporary, ignore_errors=True)  # of an export that was killed
    try:
        writable_folder(temporary)
        with Status(Console(stderr=True), f"writing and comparing {to}"):
            written = FORMATS[to].write(subject, temporary)
        text = card.card(subject, written, to, card.run_of(path))
        (temporary / card.NAME).write_text(text, encoding="utf-8")
        _publish(temporary, folder, to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(
        f"{written.what} in {folder}; its tokens differ by at most {written.difference:.1g} "
        f"({written.checked})"
    )
    for line in (*written.notes, written.code):
        print(line.replace(FOLDER, str(folder)).rstrip())
    return folder


def _expect_fits(to: str, subject: Subject) -> None:
    """Raises ValueError if the format has no such network; names those that have."""
    obstacle = FORMATS[to].obstacle(subject)
    if obstacle is not None:
        others = [name for name, one in FORMATS.items() if one.obstacle(subject) is None]
        raise ValueError(f"--to {to}: {obstacle}; expected one of {', '.join(others)}")


def _beside(path: Path, to: str) -> Path:
    """The folder of an export that is not named."""
    if (path / "state.json").is_file():  # a step, which may be removed by its run
        return path.parent.parent / f"export-{to}-{path.name}"
    return (path if path.is_dir() else path.parent) / f"export-{to}"


def _expect_ours(folder: Path, to: str, source: Path) -> None:
    """Raises ValueError unless a folder is new, empty or an earlier export of the same format."""
    if folder.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise ValueError(f"--out: expected another folder than that of CHECKPOINT, got {folder}")
    if folder.is_file():
        raise ValueError(f"--out: expected a folder's name, got the file {folder}")
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    names = sorted(name for name in names if not name.startswith("."))  # .git of a clone
    earlier = card.made_by(to) in _text(folder / card.NAME)
    others = [name for name in names if name not in (*FORMATS[to].files, card.NAME)]
    if names and (others or not earlier):
        raise ValueError(
            f"--out: expected a new folder, or an earlier export --to {to}, got {folder}, which "
            f"holds {some(others or names)}"
        )


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _publish(temporary: Path, folder: Path, to: str) -> None:
    """Gives what was written its name, or puts it in the place of an earlier export's files."""
    for file in temporary.iterdir():
        sync(file)
    if not folder.is_dir() or not any(folder.iterdir()):
        sync(temporary)
        temporary.replace(folder)
        sync(folder.parent)
        return
    for name in (*FORMATS[to].files, card.NAME):
        if (temporary / name).is_file():
            (temporary / name).replace(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    sync(folder)
