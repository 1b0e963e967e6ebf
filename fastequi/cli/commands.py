"""The commands and their options; `fastequi.cli.main` calls the function of a command's name."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastequi import limits
from fastequi.cli.hints import unknown
from fastequi.cli.image_options import Patterned, Several, Tolerant, as_images, flat
from fastequi.cli.network_options import for_network
from fastequi.cli.parsing import expect_known, given, parse
from fastequi.cli.pretraining import PretrainOptions, dated, expect_one_end, expect_online_probe
from fastequi.cli.pretraining import pretrain as pretrain
from fastequi.cli.pretraining import submit as submit
from fastequi.cli.vit_options import VitOptions
from fastequi.config import Config
from fastequi.recipes import RECIPES

_SCENE = 1 << 10  # bytes kept of each image or clip that `data scenes` makes, until all are made


@dataclass(frozen=True)
class DemoOptions:
    """Pretrains TIR on the nine embedded photographs, then its base alone for the same time, and
    evaluates the features of both: 8 minutes on two CPU cores, with --minutes M about 2·M + 2.
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """Folder of the run; by default a new one, named by date."""
    minutes: float | None = None
    """Of each of the two trainings; short for --train.minutes."""


@dataclass(frozen=True)
class ScanOptions(Patterned):
    """Decodes every image once; writes an index for training and the list of unreadable images."""

    data: tyro.conf.Positional[tuple[str, ...]]
    """Folders of images, tar shards (by URL too) or lists, as --data of pretrain; each gets its own
    index."""
    threads: int = 0
    """Threads that read and decode; 0: one per core."""
    index: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """File of the index, if the data's folder is read-only; then pass it to pretrain as well. With
    several places, one for each."""
    part: str = ""
    """K/N, such as 3/8: scan only the K-th of N parts, on one of many machines; fastequi data merge
    makes the index of them. The parts lie beside the index."""
    pages: Literal["first", "channels", "images"] | None = None
    """Of a TIFF with several pages: the first is the image, or all are its channels, or each is an
    image. An OME-TIFF or one of ImageJ says itself which are channels. With images also the frames
    of a DICOM file, which is left out otherwise. By default as the index
    says that is there; without one the first."""
    axes: Literal["hwc", "chw"] | None = None
    """Of NumPy arrays with three axes: [H, W, C] or [C, H, W]. By default as the index says that is
    there; without one hwc."""
    array: str | None = None
    """Of .npz files, the name of the array that is the image; "" where each has one. By default as
    the index says that is there."""
    nodata: str | None = None
    """Of TIFF and NumPy arrays: pixels of this number, or with "file" of the number that the file
    says (GDAL_NODATA), and those that are not finite, get the least value of their channel in the
    image; none: they are values as any other. By default as the index says that is there."""


@dataclass(frozen=True)
class MergeOptions:
    """Writes the index of parts that were scanned with --part, once none is missing."""

    data: tyro.conf.Positional[tuple[str, ...]]
    """The places that were scanned."""
    index: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """As --index of scan."""


@dataclass(frozen=True)
class ScenesOptions:
    """A test bed of exact truth, and never a benchmark: pieces pasted over photographs, with masks,
    as clips, at known depths, and in pairs of known homography. The same settings make the same."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Folder; nothing is done if it holds scenes of the same settings."""
    photos: Several = ()
    """Photographs, as --data of pretrain, of which every fifth is for validation; by default the
    embedded ones, their left 70 % for training and right 30 % for validation."""
    kinds: tuple[Literal["segment", "clips", "depth", "match"], ...] = (
        *("segment", "clips"),
        *("depth", "match"),
    )
    """What is made."""
    images: int = 64
    """Of segment and of depth, a quarter of them for validation; and pairs of match."""
    clips: int = 6
    """Of clips."""
    frames: int = 24
    """Of each clip."""
    size: int = 256
    """Side of images in pixels, and shorter side of clips (480: DAVIS')."""
    seed: int = 0
    """Of everything that is drawn."""


@dataclass(frozen=True)
class VisualizeOptions(Tolerant, VitOptions):
    """Pictures of an encoder's features: reconstructions, PCA of patches, attention, rotations."""

    checkpoint: tyro.conf.Positional[str]
    """A run's folder, a checkpoint's, a file or folder of weights, or module:function."""
    data: Several = ()
    """Images, as --data of pretrain; the nine embedded photographs by default."""
    out: Path = Path("figures")
    """Folder of the PNG files."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:1."""
    windows: int = 0
    """Windows that the probe of rotations is fitted on; 0: 1500, 300 of large views on a CPU."""
    shown: str = ""
    """Channels of the files that pictures show, as 3,2,1 for red, green and blue; by default the
    first, the middle and the last that the encoder takes. Not of RGB."""


@dataclass(frozen=True)
class ExportOptions(VitOptions):
    """An encoder as another library loads it, with a model card; its tokens are compared first."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """A run's folder, one of its checkpoints, or a file or folder of weights of any layout."""
    to: Literal["timm", "meta", "hf", "onnx", "torchscript"] | None = None
    """timm's own form; DINOv2's names (meta); a folder for transformers (hf); ONNX, for batches and
    images of any size; TorchScript, for images of one size."""
    out: Path | None = None
    """Folder; by default export-FORMAT in the run's folder or beside the file. An earlier export of
    the same format is replaced."""


@dataclass(frozen=True)
class ReportOptions(Tolerant):
    """One HTML page about one or several runs; it needs neither network nor scripts."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs."""
    out: Path = Path("report.html")
    """The page."""
    pictures: bool = True
    """Draw pictures from the newest checkpoints."""
    data: Several = ()
    """Images for them, as --data of pretrain; the nine embedded photographs by default."""
    shown: str = ""
    """Channels of the files that pictures show, as of visualize."""


def demo(argv: list[str]) -> None:
    recipe = RECIPES["demo"]()
    if not {"-h", "--help"} & set(argv):
        expect_known(DemoOptions, argv, (PretrainOptions, "fastequi pretrain demo"))
        method = given("--method", argv)  # the config would first ask for another method's settings
        limits.expect(method in ("", "tir"), "--method", "tir for the demo", method)
    options = parse(DemoOptions, "fastequi demo", for_network(argv, recipe), DemoOptions(recipe))
    config = options.config
    if options.minutes is not None:
        if options.minutes <= 0:
            raise ValueError(f"--minutes: expected a time > 0, got {options.minutes}")
        config = replace(config, train=replace(config.train, minutes=options.minutes))
    expect_one_end(argv, config)
    expect_online_probe(argv, config)

    from fastequi.cli import demo as job

    job.demo(config, options.run_dir or dated("demo"))


def data(argv: list[str]) -> None:
    jobs = {
        "scan": "decode every image once, write an index and the unreadable images",
        "merge": "write the index of parts that were scanned on several machines",
        "scenes": "make a test bed of exact truth: masks, clips, depths, pairs of views",
    }
    chosen = _choose("data command", argv, jobs, "fastequi data COMMAND PATH")
    if chosen is not None:
        job, rest = chosen
        {"scan": _scan, "merge": _merge, "scenes": _scenes}[job](rest)


def _scan(argv: list[str]) -> None:
    options = parse(ScanOptions, "fastequi data scan", argv)
    if options.threads < 0:
        raise ValueError(f"--threads: expected 0 (every core) or more, got {options.threads}")

    from fastequi.data.indexing import scan_into
    from fastequi.data.sources import index
    from fastequi.data.sources.journal import Share
    from fastequi.data.sources.parts import WHOLE, FilePart
    from fastequi.data.sources.portions import (
        expect_part,
        of_pages,
        of_part,
        pages_of,
        part_before,
        portions,
    )
    from fastequi.runtime.progress import Progress

    asked = _asked(options)
    share = Share.parsed(options.part) if options.part else Share()
    data = as_images(options.selection((options.data,), "data"))
    found = portions(data, share)
    files = _indices(options.index, [listing.index for listing, _ in found])
    for file in files:
        index.expect_writable(file)
    expect_part(found, FilePart(**asked))
    for i, file in enumerate(files):
        before, known = pages_of(file), part_before(file)
        pages, part = options.pages or before or "first", known._replace(**asked)
        if part.nodata and pages == "channels":
            raise ValueError(
                "--nodata: expected --pages first or images beside it, got --pages channels; "
                "--nodata none takes values as they are"
            )
        found[i] = of_part(*of_pages(*found[i], pages), part)
        if before and pages != before:
            print(f"--pages {pages}; the index that it replaces has --pages {before}: {file}")
        elif pages != (options.pages or "first"):
            print(f"--pages {pages}, as the index that is there has: {file}")
        kept = known._replace(**{name: getattr(WHOLE, name) for name in asked})
        if known != WHOLE and part != known:
            words = part.words or "files as they are"
            print(f"{words}; the index that it replaces has {known.words}: {file}")
        elif kept != WHOLE:
            print(f"{kept.words}, as the index that is there has: {file}")
    empty: list[str] = []
    for (listing, end), file in zip(found, files, strict=True):
        journal = share.file(file)
        with Progress("scanning") as bar:
            count = scan_into(
                *(journal, listing, end, options.threads),
                lambda i, n: bar.say(i / n if n else 1.0, f"{i} of {n} images"),
            )
        if options.part:
            print(f"part {share} of {file}: {count} of {len(listing)} images, in {journal}")
        else:
            empty += _merged(file, [journal])
    _expect_images(empty)


def _asked(options: ScanOptions) -> dict[str, Any]:
    """What of each file is asked for, by the fields of a `FilePart`; the others are as before."""
    from fastequi.data.sources.parts import expect_array, nodata_of

    asked: dict[str, Any] = {}
    if options.axes is not None:
        asked["planes"] = options.axes == "chw"
    if options.array is not None:
        expect_array("--array", options.array)
        asked["array"] = options.array
    if options.nodata is not None:
        asked["nodata"] = nodata_of("--nodata", options.nodata)
    return asked


def _merge(argv: list[str]) -> None:
    options = parse(MergeOptions, "fastequi data merge", argv)

    from fastequi.data.sources import index
    from fastequi.data.sources.merge import parts_beside
    from fastequi.data.sources.portions import index_places

    data = as_images(Patterned().selection((options.data,), "data"))
    empty: list[str] = []
    for file in _indices(options.index, index_places(data)):
        index.expect_writable(file)
        empty += _merged(file, parts_beside(file))
    _expect_images(empty)


def _indices(given: tuple[Path, ...], places: list[Path]) -> list[Path]:
    """The files of the indices: those of --index, else beside the images."""
    if given and len(given) != len(places):
        raise ValueError(
            f"--index: expected one for each of {len(places)} places, got {len(given)}"
        )
    return list(given) or places


def _merged(file: Path, journals: list[Path]) -> list[str]:
    """Writes an index and prints what is in it; returns words about one without an image."""
    from fastequi.data.indexing import merged
    from fastequi.data.sources import index

    found = merged(file, journals)
    left_out, images = len(found.index.left_out), len(found.index.columns)
    print(found.summary())
    if not images and len(index.read(file).columns):
        return [f"all {left_out} images are left out; {file}, which has others, is kept as it was"]
    print(f"index       {file}\nquarantine  {index.quarantine_of(file)}")
    return [] if images else [f"all {left_out} images are left out of {file}"]


def _expect_images(empty: list[str]) -> None:
    """Ends with exit code 1 where a scan found no image that can be used."""
    if empty:
        sys.stdout.flush()
        print(f"fastequi: {'; '.join(empty)}", file=sys.stderr)
        sys.exit(1)


def _scenes(argv: list[str]) -> None:
    options = parse(ScenesOptions, "fastequi data scenes", argv)

    import torch

    from fastequi.data.scenes.job import bytes_at_once, make
    from fastequi.data.scenes.settings import Settings
    from fastequi.data.sources.selection import Selection
    from fastequi.runtime.devices import expect_memory, expect_size
    from fastequi.runtime.progress import Progress

    given = {field.name: getattr(options, field.name) for field in fields(Settings)}
    settings = Settings(**given)
    cpu, size = torch.device("cpu"), settings.size
    expect_size("--size", size, partial(bytes_at_once, settings), cpu)
    for name in ("images", "clips"):
        expect_memory(f"--{name}", getattr(settings, name), _SCENE, cpu)
    expect_size("--frames", settings.frames, partial(bytes_at_once, settings, size), cpu)
    places = flat(options.photos)
    photos = as_images(Selection(places, option="--photos", tolerate_as="")) if places else None
    with Progress("making scenes") as bar:
        made = make(options.out, photos, settings, lambda i, n: bar.say(i / n, f"{i} of {n}"))
    print(f"{options.out}" if made else f"{options.out} holds them already")


def eval(argv: list[str]) -> None:
    from fastequi.cli import evaluations

    form = "fastequi eval KIND CHECKPOINT --data PATH"
    chosen = _choose("evaluation", argv, evaluations.KINDS, form)
    if chosen is None:
        return
    kind, rest = chosen
    if kind == "all":
        from fastequi.cli.all_evaluations import every

        every(rest)
    else:
        getattr(evaluations, kind)(rest)


def embed(argv: list[str]) -> None:
    from fastequi.cli import evaluations

    evaluations.embed(argv)


def visualize(argv: list[str]) -> None:
    options = parse(VisualizeOptions, "fastequi visualize", argv)
    if options.windows and options.windows < 100:
        raise ValueError(f"--windows: expected 0 or at least 100, got {options.windows}")

    from fastequi.report.visualize import visualize as draw

    data = as_images(options.selection(options.data)) if options.data else None
    draw(
        options.checkpoint,
        data,
        options.out,
        device=options.device,
        windows=options.windows,
        stated=options.stated(),
        shown=options.shown,
    )


def export(argv: list[str]) -> None:
    options = parse(ExportOptions, "fastequi export", argv)
    if options.to is None:
        raise ValueError("--to: expected one of timm, meta, hf, onnx, torchscript")

    from fastequi.export.job import export as job

    job(options.checkpoint, options.to, options.out, options.stated())


def report(argv: list[str]) -> None:
    options = parse(ReportOptions, "fastequi report", argv)
    if not options.runs:
        raise ValueError("RUN: expected the folder of one run or more, got none")

    from fastequi.report.report import report as write

    data = as_images(options.selection(options.data)) if options.data else None
    write(options.runs, options.out, pictures=options.pictures, data=data, shown=options.shown)


def _choose(
    what: str, argv: list[str], known: dict[str, str], form: str
) -> tuple[str, list[str]] | None:
    """The first word, which must be known, and the rest; None if help was printed."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:14s}{does}" for name, does in known.items())
        print(f"usage: {form}\n\n{lines}")
        return None
    listed_by = f"{' '.join(form.split()[:2])} --help"
    if argv[0].startswith("-"):
        raise ValueError(
            f"the {what} is missing before {argv[0]}, expected one of {', '.join(known)} "
            f"({listed_by} lists all)"
        )
    if argv[0] not in known:
        raise unknown(what, argv[0], known, listed_by)
    return argv[0], argv[1:]


def doctor(argv: list[str]) -> None:
    from fastequi.cli.doctor import report

    if argv in (["-h"], ["--help"]):
        print("usage: fastequi doctor\n\nShows what is installed, and the backend of each part.")
        return
    if argv:
        raise ValueError(f"doctor takes no options, got {' '.join(argv)}")
    print(report())
