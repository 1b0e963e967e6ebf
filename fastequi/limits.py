"""The allowed values of every setting, checked before a run does any work.

The data's settings check themselves (`fastequi.data.config`).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastequi.data.channels import ALL

if TYPE_CHECKING:
    from fastequi.config import Config

NETWORKS = (
    *("vit_tiny", "vit_small", "vit_base", "vit_large", "vit_so150m", "vit_giant"),
    *("vit_huge_plus", "nin", "alexnet"),
)
"""Networks of this library by name."""

Test = tuple[str, Callable[[float], bool]]
_COUNT: Test = (">= 1", lambda x: 1 <= x < math.inf)
_AMOUNT: Test = (">= 0", lambda x: 0 <= x < math.inf)
_POSITIVE: Test = ("> 0", lambda x: 0 < x < math.inf)
_TEMPERATURE: Test = ("> 0 and <= 1e+06", lambda x: 0 < x <= 1e6)  # as of dino_loss
_FACTOR: Test = ("0 < factor <= 1", lambda x: 0 < x <= 1)
_SHARE: Test = ("0 .. 1", lambda x: 0 <= x <= 1)
_PART: Test = ("0 <= share < 1", lambda x: 0 <= x < 1)

# section, condition, fields: of a number, of each number of a tuple; None is always allowed
_LIMITS: tuple[tuple[str, Test, str], ...] = (
    ("model", _COUNT, "num_blocks patch_size embed_dim depth num_heads mlp_hidden"),
    ("model", _COUNT, "rope_rescale rope_jitter"),
    ("model", _POSITIVE, "mlp_ratio layer_scale norm_eps rope_theta"),
    ("model", _AMOUNT, "reg_tokens rope_shift"),
    ("model", _PART, "drop_path"),
    ("init", _COUNT, "img_size patch_size"),
    ("init", _AMOUNT, "channels"),
    ("tir", _COUNT, "dim decoder_width decoder_depth decoder_heads expander projector"),
    ("tir", _AMOUNT, "num_steps equi_dim decoder_convs decoder_overlap"),
    ("tir", _AMOUNT, "recon_weight inv_weight var_weight cov_weight"),
    ("tir", _POSITIVE, "temperature"),
    ("tir", _FACTOR, "equi_layer"),
    ("teacher", _COUNT, "num_heads embed_dim img_size"),
    ("teacher", _AMOUNT, "cosine smooth_l1 cls_weight patch_weight"),
    ("distill", _COUNT, "prototypes hidden_dim bottleneck_dim"),
    ("distill", _TEMPERATURE, "student_temp teacher_temp first_teacher_temp"),
    ("distill", _SHARE, "temp_warmup momentum center_momentum freeze"),
    ("distill", _AMOUNT, "patch_weight koleo_weight"),
    ("gtsa", _COUNT, "dim bins local_bins rotation_dims"),
    ("gtsa", _AMOUNT, "correspondence_weight rotation_weight"),
    ("gtsa", _SHARE, "correspondence_from momentum"),
    ("anchor", _POSITIVE, "weight"),
    ("optim", _COUNT, "base_batch"),
    ("optim", _POSITIVE, "lr muon_lr lora_alpha"),
    ("optim", _AMOUNT, "final_lr weight_decay final_weight_decay clip lora_rank"),
    ("optim", _PART, "warmup betas momentum muon_momentum freeze_encoder"),
    ("optim", _FACTOR, "factor layer_decay patch_embed_lr encoder_lr"),
    ("train", _COUNT, "accumulate log_every max_skipped keep_checkpoints"),
    ("train", _AMOUNT, "steps minutes checkpoint_every checkpoint_minutes knn_every r2_every"),
    ("train", _AMOUNT, "stop_if_worse"),
    ("train", _PART, "ema_momentum"),
)


@functools.cache
def _choices(section: type) -> dict[str, tuple[str, ...]]:
    """The names that each field of a section may have, where it may have a few alone, or None."""
    hints = typing.get_type_hints(section) if dataclasses.is_dataclass(section) else {}
    found = {}
    for name, hint in hints.items():
        for one in (hint, *typing.get_args(hint)):  # of `Literal[...] | None` its first argument
            if typing.get_origin(one) is typing.Literal:
                found[name] = typing.get_args(one)
    return found


def check(config: Config) -> None:
    """Raises ValueError with a setting's name, the expected values and the given one."""
    for section, (expected, holds), names in _LIMITS:
        for name in names.split():
            value = getattr(getattr(config, section), name)
            for one in value if isinstance(value, tuple) else (value,):
                expect(one is None or holds(one), f"{section}.{name}", expected, value)
    for where, section in (("", config), *((f"{n}.", getattr(config, n)) for n in vars(config))):
        for name, allowed in _choices(type(section)).items():  # type: ignore[arg-type]
            value = getattr(section, name)
            absent = value is None and getattr(type(section), name) is None  # the field's default
            expect(
                absent or value in allowed, f"{where}{name}", f"one of {', '.join(allowed)}", value
            )
    _check_model(config)
    _check_init(config)
    if config.model.is_foreign:
        _check_foreign(config)
    _check_optim(config)
    _check_train(config)
    rgb = config.path.family != "color" or _channels(config) in (None, 3)
    three = "gain, the gain and offset of each channel: color is of RGB, and data.channels="
    expect(rgb, "path.family", f"{three}{config.data.channels} is not", config.path.family)
    try:
        config.path.build(_channels(config) or 3)
    except ValueError as error:
        raise ValueError(f"path.{error}") from error
    if config.method == "gtsa":
        _check_gtsa(config)
    else:
        rotations = config.data.overlaps
        expect(
            not rotations,
            "data.rotations",
            f"false, and data.overlap 0, for method={config.method}",
            rotations,
        )
        _check_base(config)
        kind, rotnet = config.anchor.kind, config.method == "rotnet"
        expect(not rotnet or kind == "none", "anchor.kind", "none for method=rotnet", kind)
    _check_batch(config)


def expect(holds: bool, name: str, expected: str, value: object) -> None:
    """Raises ValueError unless it holds."""
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {value}")


def _check_model(config: Config) -> None:
    model, data, tir = config.model, config.data, config.tir
    _check_name(model.name)
    if model.is_vit:
        _divides(config, "image_size")
    heads, width = model.num_heads, model.embed_dim
    if heads is not None and width is not None:
        expect(
            width % heads == 0,
            "model.num_heads",
            f"a divisor of model.embed_dim={width}",
            heads,
        )
        expect(
            model.pos != "rope" or width // heads % 4 == 0,
            "model.num_heads",
            f"heads of a multiple of 4 channels for model.pos=rope, of model.embed_dim={width}",
            heads,
        )
    expect(
        model.is_vit or model.is_foreign or config.method == "rotnet",
        "model.name",
        f"a ViT or a network of another package for method={config.method}",
        model.name,
    )
    if model.name == "alexnet":  # its pooling reduces smaller images to nothing
        expect(data.image_size >= 63, "data.image_size", ">= 63 for alexnet", data.image_size)
    if model.name == "nin":
        blocks = model.num_blocks
        expect(3 <= blocks <= 5, "model.num_blocks", "3 .. 5", blocks)
    expect(
        0 <= tir.equi_dim <= tir.dim,
        "tir.equi_dim",
        f"0 .. tir.dim={tir.dim}",
        tir.equi_dim,
    )
    if tir.decoder == "blocks":
        heads = 4 * tir.decoder_heads  # positions: sine and cosine along two axes
        expect(
            tir.decoder_width % heads == 0,
            "tir.decoder_width",
            f"a multiple of {heads} for tir.decoder_heads={tir.decoder_heads}",
            tir.decoder_width,
        )
    if tir.decoder_overlap:
        linear = tir.decoder == "blocks" or (tir.decoder == "patch" and not tir.decoder_convs)
        kind = f"tir.decoder={tir.decoder}"
        if tir.decoder == "patch":
            kind += f" with tir.decoder_convs={tir.decoder_convs}"
        ending = f"0 for {kind}, whose last layer is a convolution"
        ways = " (--tir.decoder-convs 0 makes it linear)" * (tir.decoder == "patch")
        expect(linear, "tir.decoder_overlap", ending + ways, tir.decoder_overlap)
    for name in ("expander", "projector"):
        widths = getattr(tir, name)
        expect(len(widths) >= 1, f"tir.{name}", "at least one width", widths)
    if config.method == "rotnet":
        _same_size(config, "method=rotnet, whose rotations need no margin")
    if config.path.family == "blur":
        _same_size(config, "the blur path, which needs no margin")


def _check_init(config: Config) -> None:
    init, name = config.init, config.model.name
    expect(not init.path or name.startswith("vit_"), "model.name", "a ViT for --init", name)
    expect(len(init.img_size) <= 2, "init.img_size", "one or two sides", init.img_size)
    kept, channels = len(init.channels), _channels(config)
    expect(
        kept == 0 or channels in (None, kept),
        "init.channels",
        f"{channels} numbers, as many as data.channels={config.data.channels} has, or none",
        init.channels,
    )
    expect(
        init.patch_size in (None, config.model.patch_size),
        "init.patch_size",
        f"model.patch_size={config.model.patch_size}",
        init.patch_size,
    )


def expect_colors(config: Config) -> None:
    """Refuses a path of colours where the channels, known by now, are none.

    Raises:
        ValueError: names the option.
    """
    gain = "gain, or data.file_colors=True where the three are red, green and blue; the files of "
    expect(
        config.path.family != "color" or config.data.has_colors,
        "path.family",
        f"{gain}data.channels={config.data.channels} do not say so",
        config.path.family,
    )


def _channels(config: Config) -> int | None:
    """Of the images; None of data.channels=all, which a run replaces by numbers."""
    return None if config.data.channels == ALL else config.data.in_chans


def _check_name(name: str) -> None:
    """One of `NETWORKS`, or with a colon; what lies behind that is asked when it is built."""
    kind, colon, what = str(name).partition(":")
    near = difflib.get_close_matches(str(name), NETWORKS, n=1)
    expect(
        name in NETWORKS or (kind != "" and what != ""),
        "model.name",
        f"one of {', '.join(NETWORKS)}, or timm:NAME, torchvision:NAME, hf:FOLDER or "
        f"package.module:function",
        f"{name}, did you mean {near[0]!r}?" if near and not colon else name,
    )


def _check_foreign(config: Config) -> None:
    """What a network of another package cannot do, and settings that mean nothing for it."""
    model, optim, tir = config.model, config.optim, config.tir
    whose = f"for model.name={model.name}"
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        said = field.name in ("name", "attention")  # the decoder has attention as well
        expect(
            said or value == field.default,
            f"model.{field.name}",
            f"{field.default} {whose}, whose function or folder says the rest",
            value,
        )
    no_blocks = f"{whose}, whose blocks are not known"
    expect(optim.layer_decay == 1, "optim.layer_decay", f"1 {no_blocks}", optim.layer_decay)
    expect(
        optim.patch_embed_lr == 1, "optim.patch_embed_lr", f"1 {no_blocks}", optim.patch_embed_lr
    )
    if config.method != "tir":
        return
    masks = "masked patches need the patch embedding of a ViT of this library"
    expect(
        tir.base not in ("ibot", "dinov2"),
        "tir.base",
        f"vicreg, simclr or dino {whose}: {masks}",
        tir.base,
    )
    expect(tir.equi_layer == 1, "tir.equi_layer", f"1 {no_blocks}", tir.equi_layer)


def _divides(config: Config, size: str) -> None:
    patch, side = config.model.patch_size, getattr(config.data, size)
    expect(side % patch == 0, "model.patch_size", f"a divisor of data.{size}={side}", patch)


def _same_size(config: Config, why: str) -> None:
    source, size = config.data.source_size, config.data.image_size
    expect(source == size, "data.source_size", f"data.image_size={size} for {why}", source)


def _check_optim(config: Config) -> None:
    optim = config.optim
    expect(len(optim.betas) == 2, "optim.betas", "two numbers", optim.betas)
    inside = all(0 < share < 1 for share in optim.milestones)
    expect(
        inside and sorted(optim.milestones) == list(optim.milestones),
        "optim.milestones",
        "increasing shares between 0 and 1",
        optim.milestones,
    )
    model, muon = config.model, optim.kind == "muon"
    what = "adamw or sgd for a network without transformer blocks"
    expect(not muon or model.is_vit or model.is_foreign, "optim.kind", what, optim.kind)
    rank = optim.lora_rank
    expect(not rank or model.is_vit, "optim.lora_rank", f"0 for model.name={model.name}", rank)
    expect(
        not (rank and muon and optim.muon_encoder),
        "optim.muon_encoder",
        "false for optim.lora_rank, whose matrices AdamW updates",
        optim.muon_encoder,
    )
    expect(
        not (muon and model.is_foreign and optim.muon_encoder),
        "optim.muon_encoder",
        f"false for model.name={model.name}, whose blocks are not known",
        optim.muon_encoder,
    )


def _check_train(config: Config) -> None:
    train = config.train
    expect(
        not (train.minutes and train.steps),
        "train.steps",
        "0, or train.minutes=0 beside it",
        f"{train.steps} beside train.minutes={train.minutes:g}, after which the run ends",
    )
    by_epochs = not (train.minutes or train.steps)
    expect(not by_epochs or train.epochs >= 1, "train.epochs", ">= 1", train.epochs)
    expect(
        not train.knn_every or bool(train.knn_data),
        "train.knn_data",
        "labelled images for train.knn_every",
        repr(train.knn_data),
    )
    expect(
        not train.stop_if_worse or bool(train.knn_every or train.r2_every),
        "train.stop_if_worse",
        "0 without an online probe (train.knn_every, train.r2_every)",
        train.stop_if_worse,
    )
    if train.parallel == "ddp":
        return
    expect(
        config.optim.kind != "sgd",
        "optim.kind",
        "adamw or muon for train.parallel=fsdp (PyTorch's fused SGD cannot shard)",
        config.optim.kind,
    )
    for name in ("knn_every", "r2_every", "async_save"):
        value = getattr(train, name)
        what = "none for train.parallel=fsdp, whose weights are sharded"
        expect(not value, f"train.{name}", what, value)


def _check_batch(config: Config) -> None:
    """A loss that compares the images of a batch needs at least two."""
    base, batch = config.tir.base, config.data.batch_size
    why = ""
    if config.method == "tir" and base in ("vicreg", "simclr"):
        why = f"tir.base={base}, which compares images"
    elif config.method == "tir" and base == "dinov2" and config.distill.koleo_weight:
        why = "distill.koleo_weight > 0, which compares images"
    elif config.model.name == "alexnet" and not config.rotnet.all_rotations:
        why = "alexnet's BatchNorm without rotnet.all_rotations"
    least = "at least 2 over all processes (accumulation does not add to it), for"
    expect(not why or batch >= 2, "data.batch_size", f"{least} {why}", batch)


def _check_gtsa(config: Config) -> None:
    data = config.data
    expect(data.rotations, "data.rotations", "true for method=gtsa", data.rotations)
    _same_size(config, "method=gtsa, whose rotations need no margin")
    if data.local_crops and config.model.is_vit:
        _divides(config, "local_crop_size")
        halves = (data.local_crop_size // config.model.patch_size) ** 2 // 2
        whole = (data.image_size // config.model.patch_size) ** 2
        expect(
            halves <= whole or config.gtsa.correspondence_from == 1,
            "data.local_crop_size",
            f"a size of whose patches half ({halves}) find matches among the {whole} of "
            f"data.image_size={data.image_size}, for method=gtsa",
            data.local_crop_size,
        )
    expect(data.mask_share == 0, "data.mask_share", "0 for method=gtsa", data.mask_share)


def _check_base(config: Config) -> None:
    base, data, tir = config.tir.base, config.data, config.tir
    masked, distilled = base in ("ibot", "dinov2"), base in ("dino", "ibot", "dinov2")
    expect(
        masked == (data.mask_share > 0),
        "data.mask_share",
        f"{'> 0' if masked else '0'} for tir.base={base}",
        data.mask_share,
    )
    expect(
        distilled or data.local_crops == 0,
        "data.local_crops",
        f"0 for tir.base={base}",
        data.local_crops,
    )
    if base == "distillation":
        teacher = config.teacher
        for first, second in (("cosine", "smooth_l1"), ("cls_weight", "patch_weight")):
            both = getattr(teacher, first), getattr(teacher, second)
            expect(sum(both) > 0, f"teacher.{first}", f"> 0, or teacher.{second}", both[0])
    if not distilled:
        return
    expect(config.model.class_token, "model.class_token", f"true for tir.base={base}", False)
    if config.model.is_vit:
        _divides(config, "local_crop_size")
    expect(
        tir.equi_dim < tir.dim,
        "tir.equi_dim",
        f"less than tir.dim={tir.dim}: tir.base={base} needs the others",
        tir.equi_dim,
    )
