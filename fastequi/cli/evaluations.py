"""The options of each `fastequi eval KIND` and of `fastequi embed`, and what they call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastequi.cli.dense import clusters, depth, segment  # noqa: F401
from fastequi.cli.geometry import (  # noqa: F401
    homography,
    layers,
    match,
    position,
    propagate,
)
from fastequi.cli.image_options import Several, Tolerant, as_images, expect_places, images_of
from fastequi.cli.parsing import at_least, is_given, memory_for, parse
from fastequi.cli.vit_options import VitOptions
from fastequi.config import PathConfig
from fastequi.evaluate.geometry.kinds import DATA as DATA_OF_GEOMETRY
from fastequi.evaluate.geometry.kinds import KINDS as GEOMETRY

KINDS = {
    "equivariance": "R² of five transformations, predicted from the features of image pairs",
    "knn": "accuracy of classes predicted from the nearest neighbours",
    "linear": "accuracy of classes predicted by a linear probe",
    "reconstruct": "PSNR and SSIM of the predicted images; dimensions that features use",
    "rotnet": "accuracy of predicted rotations and class probes of every block, of a RotNet run",
    **GEOMETRY,
    "all": "each of these that the given data allows: one page of figures",
}
DATA = {
    "equivariance": "photographs",
    "knn": "labelled",
    "linear": "labelled",
    "reconstruct": "photographs",
    "rotnet": "labelled",
    **DATA_OF_GEOMETRY,
}
"""What --data of each holds, by `all`'s names for it."""
Checkpoint = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
Device = str
_LABELLED = 'folders of classes, shards, lists or "digits"'


@dataclass(frozen=True)
class EquivarianceOptions(Tolerant, VitOptions):
    """R² of rotation, translation, SE(2), colour and blur, predicted from the frozen features of
    image pairs, beside baselines: raw pixels, the transformed image alone, a random init."""

    checkpoint: Checkpoint
    """A run's folder, a checkpoint's, a file or folder of weights, or module:function."""
    data: Several = ()
    """Photographs, as --data of pretrain; every fifth is for testing, unless folders are named as
    splits. Embedded ones by default."""
    test_data: Several = ()
    """Test photographs, instead of every fifth."""
    against: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further encoder for the tables, such as the base without reconstruction."""
    tasks: tuple[Literal["rotation", "translation", "se2", "color", "gain", "blur"], ...] = (
        *("rotation", "translation", "se2"),
        *("color", "blur"),
    )
    """Which transformations; color is of RGB, of other channels it is gain: each channel's own gain
    and offset."""
    photometric: tuple[Literal["rotation", "translation", "se2"], ...] = ("se2",)
    """Which of them also between images of different light, colours, sharpness and noise; the
    default only where it is among --tasks."""
    probes: tuple[Literal["token", "cosines", "mlp", "ridge"], ...] = (
        *("token", "cosines"),
        *("mlp", "ridge"),
    )
    """Which probes: of all tokens of both images, of the cosines between these, of their means."""
    degrees: float = 45.0
    """Half-range of the angle."""
    pixels: float = 10.0
    """Half-range of each shift, in pixels of a 224 px view."""
    train_pairs: int = 24_000
    """Pairs that probes are fitted on; with fewer, R² says more of the probes than the features."""
    fewer_pairs: tuple[int, ...] = ()
    """Smaller numbers of pairs for tables of their own, such as 3000: what few labels give."""
    test_pairs: int = 2_000
    """Pairs that probes are tested on."""
    zero_fill: bool = False
    """Zeros at the borders of transformed images, which reveal the transformation: only to compare
    with published tables."""
    epochs: int = 6
    """Of the MLPs."""
    seeds: int = 3
    """MLPs fitted for every row."""
    seed: int = 0
    """Of windows, parameters and MLPs."""
    device: Device = "auto"
    """Where it runs: auto, cpu, cuda or cuda:1."""
    out: Path | None = None
    """JSON file; by default eval_equivariance.json in the CHECKPOINT folder, of a file
    eval_equivariance_FILE.json in the current folder; with --zero-fill eval_equivariance_zero_fill
    in place of eval_equivariance."""


@dataclass(frozen=True)
class KnnOptions(Tolerant, VitOptions):
    """Classes predicted from the nearest neighbours, k = 5, 10, 20, 200, temperature .07, beside
    baselines: raw pixels, a random init."""

    checkpoint: Checkpoint
    """A run's folder, a checkpoint's, a file or folder of weights, or module:function."""
    data: Several = ()
    """Folders of class subfolders (below train/ and val/ or the like, if split), shards with .cls
    members or class folders, or lists (path, tab, class); a folder of IDX files; or "digits"."""
    test_data: Several = ()
    """Test images, instead of those below val/ or every fifth of a class."""
    against: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further encoder for the table."""
    train_images: int = 0
    """Labelled images; 0: all."""
    test_images: int = 0
    """Images whose classes are predicted; 0: all."""
    crop: float = 1.0
    """Share of a file's shorter side that its centred square takes (224/256 = .875 on ImageNet)."""
    device: Device = "auto"
    """Where it runs: auto, cpu, cuda or cuda:1."""
    out: Path | None = None
    """JSON file; eval_KIND.json in the CHECKPOINT folder by default, of a file eval_KIND_FILE.json
    in the current folder."""


@dataclass(frozen=True)
class LinearOptions(KnnOptions):
    """Classes predicted by logistic regression (L-BFGS), its penalty chosen on a fifth of the
    labels, beside baselines: raw pixels, a random init."""

    seeds: int = 3
    """Draws of that fifth."""


@dataclass(frozen=True)
class ReconstructOptions(Tolerant):
    """PSNR and SSIM of the predicted images, beside their baseline, the nearer view; spectra of
    z_inv and z_equi."""

    checkpoint: Checkpoint
    """A run's folder, or a checkpoint's."""
    data: Several = ()
    """Photographs, as --data of pretrain, of which those for testing are used (every fifth, unless
    folders are named as splits). Embedded ones by default."""
    test_data: Several = ()
    """Photographs, all of which are used."""
    images: int = 512
    """Views that figures are means over."""
    seed: int = 0
    """Of windows and paths."""
    device: Device = "auto"
    """Where it runs: auto, cpu, cuda or cuda:1."""
    out: Path | None = None
    """JSON file; eval_reconstruct.json in the CHECKPOINT folder by default."""


@dataclass(frozen=True)
class EmbedOptions(Tolerant, VitOptions):
    """Features of images, in sorted order, with the list of their files beside them."""

    checkpoint: Checkpoint
    """A run's folder, a checkpoint's, a file or folder of weights, or module:function."""
    data: Several = ()
    """Images, as --data of pretrain: folders, tar shards, lists."""
    out: Path | None = None
    """FILE.safetensors (all features), FILE.npy (one), or a folder of .npy files."""
    features: tuple[str, ...] = ()
    """Of cls, patch, z_inv, z_equi; by default all that the encoder has."""
    tokens: Literal["mean", "all"] = "mean"
    """The mean over the grid of patches, or every token of it."""
    crop: float = 1.0
    """Share of an image's shorter side that its centred square takes."""
    size: tuple[str, ...] = ()
    """Side of the squares in pixels, or height and width (224 448 or 224x448), multiples of the
    patch size; the encoder's own by default. A ViT's positions are interpolated."""
    batch: int = 64
    """Images at a time."""
    device: Device = "auto"
    """Where it runs: auto, cpu, cuda or cuda:1."""


@dataclass(frozen=True)
class RotNetOptions(Tolerant):
    """Accuracy of a RotNet run's predicted rotations (chance .25), and class probes on its blocks,
    beside baselines: raw pixels, a random init."""

    checkpoint: Checkpoint
    """A run's folder, or a checkpoint's."""
    data: Several = ()
    """Labelled images, as --data of eval knn: folders of classes, shards, lists, a folder of IDX
    files, or "digits"."""
    test_data: Several = ()
    """Test images, instead of those below val/ or every fifth of a class."""
    against: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further RotNet run for the tables."""
    train_images: int = 5000
    """Images that the probes are fitted on; 0: all."""
    test_images: int = 2000
    """Images that rotations and probes are tested on; 0: all."""
    crop: float = 1.0
    """Share of a file's shorter side that its centred square takes (224/256 = .875 on ImageNet)."""
    device: Device = "auto"
    """Where it runs: auto, cpu, cuda or cuda:1."""
    out: Path | None = None
    """JSON file; eval_rotnet.json in the CHECKPOINT folder by default."""


def equivariance(argv: list[str]) -> None:
    options = parse(EquivarianceOptions, "fastequi eval equivariance", argv)
    at_least(options, 1, "epochs", "seeds")
    at_least(options, 10, "train_pairs", "test_pairs")
    if not options.tasks:
        raise ValueError("--tasks: expected one transformation or more, got none")
    if options.degrees > 180:
        raise ValueError(
            f"--degrees: expected a half-range of at most 180, got {options.degrees:g}"
        )
    for name, of in (("degrees", "rotation"), ("pixels", "translation")):
        asked, value = {of, "se2"} & set(options.tasks), getattr(options, name)
        if value < 0 or (value == 0 and asked):
            least = "> 0" if asked else ">= 0"
            raise ValueError(f"--{name}: expected a half-range {least}, got {value}")

    from fastequi.evaluate.equivariance import evaluate_equivariance
    from fastequi.evaluate.probes import Fit
    from fastequi.evaluate.tasks import Budget, tasks

    if len(set(options.fewer_pairs)) < len(options.fewer_pairs):
        said = " ".join(map(str, options.fewer_pairs))
        raise ValueError(f"--fewer-pairs: expected different numbers, got {said}")
    for n in options.fewer_pairs:
        if not 10 <= n < options.train_pairs:
            raise ValueError(
                f"--fewer-pairs: expected 10 .. {options.train_pairs - 1}, less than "
                f"--train-pairs, got {n}"
            )
    ranges = PathConfig(degrees=options.degrees, pixels=options.pixels)
    photometric = [name for name in options.photometric if name in options.tasks]
    if len(photometric) < len(options.photometric) and is_given("--photometric", argv):
        raise ValueError(
            f"--photometric: expected some of --tasks {' '.join(options.tasks)}, got "
            f"{' '.join(options.photometric)}"
        )
    budget = Budget(
        train_pairs=options.train_pairs,
        test_pairs=options.test_pairs,
        probes=options.probes,
        fewer_pairs=options.fewer_pairs,
        fit=Fit(epochs=options.epochs, seeds=options.seeds, seed=options.seed),
        seed=options.seed,
        zero_fill=options.zero_fill,
    )
    evaluate_equivariance(
        options.checkpoint,
        data=images_of(options, options.data),
        test_data=images_of(options, options.test_data, "--test-data"),
        against=options.against,
        chosen=tasks(options.tasks, ranges, photometric),
        budget=budget,
        device=options.device,
        out=options.out,
        stated=options.stated(),
    )


def knn(argv: list[str]) -> None:
    _classes("knn", parse(KnnOptions, "fastequi eval knn", argv))


def linear(argv: list[str]) -> None:
    options = parse(LinearOptions, "fastequi eval linear", argv)
    at_least(options, 1, "seeds")
    _classes("linear", options, seeds=options.seeds)


def _classes(kind: str, options: KnnOptions, **others: int) -> None:
    at_least(options, 0, "train_images", "test_images", zero="all")
    _check_crop(options.crop)

    from fastequi.evaluate.classification import evaluate_classes

    expect_places(options.data, _LABELLED)
    evaluate_classes(
        kind,
        options.checkpoint,
        data=options.selection(options.data),
        test_data=images_of(options, options.test_data, "--test-data"),
        against=options.against,
        train_images=options.train_images,
        test_images=options.test_images,
        share=options.crop,
        device=options.device,
        out=options.out,
        stated=options.stated(),
        **others,
    )


def reconstruct(argv: list[str]) -> None:
    options = parse(ReconstructOptions, "fastequi eval reconstruct", argv)
    at_least(options, 2, "images")

    from fastequi.evaluate.reconstruction import evaluate_reconstruction

    evaluate_reconstruction(
        options.checkpoint,
        data=images_of(options, options.data),
        test_data=images_of(options, options.test_data, "--test-data"),
        images=options.images,
        seed=options.seed,
        device=options.device,
        out=options.out,
    )


def embed(argv: list[str]) -> None:
    options = parse(EmbedOptions, "fastequi embed", argv)
    at_least(options, 1, "batch")
    _check_crop(options.crop)

    from fastequi.evaluate.embed import embed as job

    expect_places(options.data, "folders of images, tar shards or lists")
    if options.out is None:
        raise ValueError("--out: expected FILE.safetensors, FILE.npy or a folder")
    with memory_for("--batch", options.batch):
        job(
            options.checkpoint,
            as_images(options.selection(options.data)),
            options.out,
            names=options.features,
            all_tokens=options.tokens == "all",
            share=options.crop,
            batch=options.batch,
            device=options.device,
            size=_size(options.size),
            stated=options.stated(),
        )


def rotnet(argv: list[str]) -> None:
    options = parse(RotNetOptions, "fastequi eval rotnet", argv)
    at_least(options, 0, "train_images", "test_images", zero="all")
    _check_crop(options.crop)

    from fastequi.evaluate.rotnet import evaluate_rotnet

    expect_places(options.data, _LABELLED)
    evaluate_rotnet(
        options.checkpoint,
        data=options.selection(options.data),
        test_data=images_of(options, options.test_data, "--test-data"),
        against=options.against,
        train_images=options.train_images,
        test_images=options.test_images,
        share=options.crop,
        device=options.device,
        out=options.out,
    )


def _size(words: tuple[str, ...]) -> tuple[int, int] | None:
    """Height and width of "224", "224 448" or "224x448"."""
    sides = [side for word in words for side in word.lower().replace("×", "x").split("x")]
    if not words:
        return None
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(
            f"--size: expected a side in pixels, or height and width (224, 224 448, 224x448), got "
            f"{' '.join(words)}"
        )
    return int(sides[0]), int(sides[-1])


def _check_crop(crop: float) -> None:
    if not 0 < crop <= 1:
        raise ValueError(f"--crop: expected 0 < share <= 1, got {crop}")
