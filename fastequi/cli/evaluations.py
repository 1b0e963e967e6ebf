"""What each `fastequi eval KIND` takes and does, and `fastequi embed`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastequi.cli.image_options import Patterned, Several, as_images, expect_places, flat
from fastequi.cli.vit_options import VitOptions
from fastequi.config import PathConfig
from fastequi.data.sources.image_sets import Selection

KINDS = {
    "equivariance": "R² of five transformations read from pairs of features, floors beside them",
    "knn": "classes from the nearest neighbours' labels, raw pixels beside them",
    "linear": "classes by a linear probe, raw pixels beside it",
    "reconstruct": "PSNR and SSIM of the predicted images; dimensions that features use",
    "rotnet": "rotation accuracy and every block's probes of a rotnet run",
}
Checkpoint = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
Device = str


@dataclass(frozen=True)
class EquivarianceOptions(Patterned, VitOptions):
    """R² of rotation, translation, SE(2), colour and blur, read from frozen pairs of features."""

    checkpoint: Checkpoint
    """A run's folder, a checkpoint's, a *.safetensors of timm's names, or module:function."""
    data: Several = ()
    """Photographs, as --data of pretrain; every fifth is for testing, unless folders are named as
    splits. Embedded ones by default."""
    test_data: Several = ()
    """Test photographs, instead of every fifth."""
    against: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further encoder for the tables, such as the base without reconstruction; repeatable."""
    tasks: tuple[Literal["rotation", "translation", "se2", "color", "blur"], ...] = (
        *("rotation", "translation", "se2"),
        *("color", "blur"),
    )
    """Which transformations."""
    probes: tuple[Literal["token", "mlp", "ridge"], ...] = ("token", "mlp", "ridge")
    """Which probes."""
    degrees: float = 45.0
    """Half-range of the angle."""
    pixels: float = 10.0
    """Half-range of each shift, in pixels of a 224 px view."""
    train_pairs: int = 24_000
    """Pairs that probes are fitted on; fewer judge the probes, not the features."""
    test_pairs: int = 2_000
    """Pairs that probes are judged on."""
    zero_fill: bool = False
    """Zeros at the borders of transformed images, which give the transformation away: only to
    compare with published tables."""
    epochs: int = 6
    """Of the MLPs."""
    seeds: int = 3
    """MLPs fitted for every row."""
    seed: int = 0
    """Of windows, parameters and MLPs."""
    device: Device = "auto"
    """Where it runs: auto, cpu, cuda or cuda:1."""
    out: Path | None = None
    """JSON file; by default eval_equivariance.json in the CHECKPOINT folder, with --zero-fill
    eval_equivariance_zero_fill.json."""


@dataclass(frozen=True)
class KnnOptions(Patterned, VitOptions):
    """Classes from the nearest neighbours' labels, k = 5, 10, 20, 200, temperature .07."""

    checkpoint: Checkpoint
    """A run's folder, a checkpoint's, a *.safetensors of timm's names, or module:function."""
    data: Several = ()
    """Folders of class subfolders (below train/ and val/ or the like, if split), shards with .cls
    members or class folders, or lists (path, tab, class); a folder of IDX files; or "digits"."""
    test_data: Several = ()
    """Test images, instead of those below val/ or every fifth of a class."""
    against: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further encoder for the table; repeatable."""
    train_images: int = 0
    """Labelled images; 0: all."""
    test_images: int = 0
    """Images that are told; 0: all."""
    crop: float = 1.0
    """Share of a file's shorter side that its centred square takes (224/256 = .875 on ImageNet)."""
    device: Device = "auto"
    """Where it runs: auto, cpu, cuda or cuda:1."""
    out: Path | None = None
    """JSON file; eval_KIND.json in the CHECKPOINT folder by default."""


@dataclass(frozen=True)
class LinearOptions(KnnOptions):
    """Classes by logistic regression (L-BFGS), its penalty chosen on a fifth of the labels."""

    seeds: int = 3
    """Draws of that fifth."""


@dataclass(frozen=True)
class ReconstructOptions(Patterned):
    """PSNR and SSIM of the predicted images beside the nearer view; spectra of z_inv and z_equi."""

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
class EmbedOptions(Patterned, VitOptions):
    """Features of a folder's images, in sorted order, with the list of files beside them."""

    checkpoint: Checkpoint
    """A run's folder, a checkpoint's, a *.safetensors of timm's names, or module:function."""
    data: Several = ()
    """Images, as --data of pretrain: folders, tar shards, lists."""
    out: Path | None = None
    """FILE.safetensors (all features), FILE.npy (one), or a folder of .npy files."""
    features: tuple[str, ...] = ()
    """Of cls, patch, z_inv, z_equi; all that there are by default."""
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
class RotNetOptions:
    """Rotation accuracy and every block's probes of a finished rotnet run."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    data: Path
    """Folder of an MNIST-like set (IDX files), with labels."""
    train_images: int = 5000
    """Images that the probes are fitted on; 0: all."""
    test_images: int = 2000
    """Images that turns and probes are judged on; 0: all."""
    device: Device = "auto"
    """Where it runs: auto, cpu, cuda or cuda:1."""


def equivariance(argv: list[str]) -> None:
    options = tyro.cli(EquivarianceOptions, prog="fastequi eval equivariance", args=argv)
    _at_least(options, 1, "epochs", "seeds")
    _at_least(options, 10, "train_pairs", "test_pairs")
    for name, of in (("degrees", "rotation"), ("pixels", "translation")):
        asked, value = {of, "se2"} & set(options.tasks), getattr(options, name)
        if value < 0 or (value == 0 and asked):
            least = "> 0" if asked else ">= 0"
            raise ValueError(f"--{name}: expected a half-range {least}, got {value}")

    from fastequi.evaluate.equivariance import judge
    from fastequi.evaluate.probes import Fit
    from fastequi.evaluate.tasks import Budget, tasks

    ranges = PathConfig(degrees=options.degrees, pixels=options.pixels)
    fit = Fit(epochs=options.epochs, seeds=options.seeds, seed=options.seed)
    budget = Budget(
        options.train_pairs,
        options.test_pairs,
        options.probes,
        fit,
        seed=options.seed,
        zero_fill=options.zero_fill,
    )
    judge(
        options.checkpoint,
        _images(options, options.data),
        _images(options, options.test_data, "--test-data"),
        options.against,
        tasks(options.tasks, ranges),
        budget,
        options.device,
        options.out,
        options.stated(),
    )


def knn(argv: list[str]) -> None:
    _classes("knn", tyro.cli(KnnOptions, prog="fastequi eval knn", args=argv))


def linear(argv: list[str]) -> None:
    options = tyro.cli(LinearOptions, prog="fastequi eval linear", args=argv)
    _at_least(options, 1, "seeds")
    _classes("linear", options, seeds=options.seeds)


def _classes(kind: str, options: KnnOptions, **others: int) -> None:
    _at_least(options, 0, "train_images", "test_images")
    _check_crop(options.crop)

    from fastequi.evaluate.classification import judge

    expect_places(options.data, 'folders of classes, shards, lists or "digits"')
    judge(
        kind,
        options.checkpoint,
        options.selection(options.data),
        options.against,
        options.train_images,
        options.test_images,
        options.crop,
        device=options.device,
        out=options.out,
        stated=options.stated(),
        test_data=_images(options, options.test_data, "--test-data"),
        **others,
    )


def reconstruct(argv: list[str]) -> None:
    options = tyro.cli(ReconstructOptions, prog="fastequi eval reconstruct", args=argv)
    _at_least(options, 2, "images")

    from fastequi.evaluate.reconstruction import judge

    judge(
        options.checkpoint,
        _images(options, options.data),
        _images(options, options.test_data, "--test-data"),
        options.images,
        options.seed,
        options.device,
        options.out,
    )


def embed(argv: list[str]) -> None:
    options = tyro.cli(EmbedOptions, prog="fastequi embed", args=argv)
    _at_least(options, 1, "batch")
    _check_crop(options.crop)

    from fastequi.evaluate.embed import embed as job

    expect_places(options.data, "folders of images, tar shards or lists")
    if options.out is None:
        raise ValueError("--out: expected FILE.safetensors, FILE.npy or a folder")
    data = as_images(options.selection(options.data))
    whole, size, stated = options.tokens == "all", _size(options.size), options.stated()
    how = options.features, whole, options.crop, options.batch, options.device, size, stated
    job(options.checkpoint, data, options.out, *how)


def rotnet(argv: list[str]) -> None:
    options = tyro.cli(RotNetOptions, prog="fastequi eval rotnet", args=argv)
    _at_least(options, 0, "train_images", "test_images")

    from fastequi.evaluate.rotnet import judge

    judge(options.run, options.data, options.train_images, options.test_images, options.device)


def _images(
    options: Patterned, places: tuple[tuple[str, ...], ...], option: str = "--data"
) -> Selection | None:
    """What an option names; None where it was not given."""
    return as_images(options.selection(places, option)) if flat(places) else None


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


def _at_least(options: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value < least:
            meaning = "0 (all) or more" if least == 0 else f">= {least}"
            raise ValueError(f"--{name.replace('_', '-')}: expected {meaning}, got {value}")


def _check_crop(crop: float) -> None:
    if not 0 < crop <= 1:
        raise ValueError(f"--crop: expected 0 < share <= 1, got {crop}")
