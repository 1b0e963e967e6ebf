"""The launches that `sass.py` compiles without a GPU, and what they may cost.

A kernel is declared in one place: a function below, named after its file in kernels/, gives one
`Case` for each launch. Those that are not slow are compiled for sm_90, all of them in slow tests;
one with `ceilings` may not need more instructions than they say. `test_offline_compile.py` fails
for a kernel that no case launches.
"""

import random
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, NamedTuple

import torch

from fastequi.kernels import (
    autograd,
    blur,
    correspondence,
    crop_align,
    dino_triton,
    fused_views_kernels,
    gram,
    koleo,
    linear_recon,
    nt_xent,
    overlap,
    packed,
    rot90_batch,
    similarities,
    sinkhorn,
    unit_rows,
    vicreg,
    warp,
    warp_packed,
    warp_recon_general,
    warp_recon_packed,
)

# Types by the name of the argument, where a case does not state another one; other arguments are
# integers, and the constants of a case are compiled in.
POINTERS = {
    **dict.fromkeys(
        ("pred_ptr", "student_ptr", "teacher_ptr", "x_ptr", "grad_ptr", "out_ptr", "s_ptr", "t_ptr",
         "z_ptr", "every_ptr", "pooled_ptr", "y_ptr", "panel_ptr"), "*bf16",
    ),
    **dict.fromkeys(
        ("theta_ptr", "color_ptr", "mean_ptr", "std_ptr", "means_ptr", "gains_ptr", "sigma_ptr",
         "total_ptr", "count_ptr", "counts_ptr", "parts_ptr", "weight_ptr", "row_ptr", "column_ptr",
         "lse_ptr", "every_lse_ptr", "loss_ptr", "dtheta_ptr", "high_ptr", "forth_weight_ptr",
         "back_weight_ptr", "student_boxes_ptr", "teacher_boxes_ptr", "boxes_ptr", "cosine_ptr",
         "z1_ptr", "z2_ptr", "centred_ptr", "sums_ptr", "factor_ptr", "negative_ptr",
         "positive_ptr", "pull_ptr", "numbers_ptr", "planes_ptr", "x_norm_ptr", "y_norm_ptr",
         "along_ptr", "unit_ptr", "push_ptr", "by_unit_ptr", "each_ptr", "ranges_ptr"), "*fp32",
    ),
    **dict.fromkeys(
        ("arrived_ptr", "pairs_ptr", "own_ptr", "at_ptr", "forth_ptr", "back_ptr", "turns_ptr",
         "taken_ptr"), "*i32",
    ),
    **dict.fromkeys(
        ("ids_ptr", "positives_ptr", "places_ptr", "blurred_ptr", "neighbour_ptr"), "*i64"
    ),
    "image_ptr": "*u8",
    "windows_ptr": "*fp64",
}  # fmt: skip
FLOATS = {
    "max_sigma", "weight", "scale", "student_scale", "teacher_scale", "inverse_temp", "mean0",
    "mean1", "mean2", "gain0", "gain1", "gain2", "slope_inv", "slope_var", "slope_cov", "eps",
    "factor",
}  # fmt: skip
# Sizes and strides that are multiples of 16, as those of 224×224 images are.
EVEN = {
    "H", "W", "HS", "WS", "SPAN", "stride_pb", "stride_pk", "stride_pc", "stride_py",
    "stride_pl", "stride_ib", "stride_iy", "N", "D", "stride_z", "stride_e", "stride_s",
    "stride_t", "stride_g", "stride_r", "stride_1", "stride_2", "stride_ob", "stride_oc",
    "stride_oy", "stride_sv", "stride_sb", "stride_sm", "stride_tv", "stride_tb", "stride_tm",
    "stride_tn", "C", "stride_ov", "E", "stride_xb", "stride_xn", "stride_xm", "stride_yb",
    "stride_yn", "stride_p", "stride_p0", "stride_p1",
}  # fmt: skip


class Ceilings(NamedTuple):
    """Instructions on sm_90 that may only go down, by the version of Triton.

    Per pixel (all channels, gradient included), or per value of a row of logits (the whole kernel
    over one block). Of kernels that loop over tiles: one turn, all samples inside the image.
    Triton 3.8 rounds to tf32 with integer instructions of its own, a quarter more in the blur; its
    LLVM keeps other values across loops.
    """

    triton_3_6: int
    triton_3_7: int
    triton_3_8: int


class Case(NamedTuple):
    """One launch."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    pixels: int  # or values, that a program handles at a time
    types: dict[str, str] = {}  # where not as in POINTERS  # noqa: RUF012
    warps: int = 4
    registers: Callable[[int], int | None] = lambda arch: None  # allowed on an architecture
    stages: int | None = None  # of loads ahead
    loops: bool = False  # over tiles: one turn is counted
    ceilings: Ceilings | None = None
    slow: bool = False  # compiled with -m slow alone


_SECTIONS: list[Callable[[], Iterator[Case]]] = []


def section(cases_of_a_kernel: Callable[[], Iterator[Case]]) -> Callable[[], Iterator[Case]]:
    _SECTIONS.append(cases_of_a_kernel)
    return cases_of_a_kernel


def cases() -> list[Case]:
    """All launches, those of one kernel together."""
    found = [case for declared in _SECTIONS for case in declared()]
    assert len({case.name for case in found}) == len(found), "two cases of one name"
    return found


def _by_table(name: str, kernel: Any, config: dict[str, Any], pixels: int, **more: Any) -> Case:
    """Of what a kernel's own launch table gives: constants and compiler options."""
    options = {key: config.get(key) for key in ("num_warps", "maxnreg", "num_stages")}
    constants = {key: value for key, value in config.items() if key not in options}
    how = {"warps": options["num_warps"], "stages": options["num_stages"]}
    return Case(name, kernel, constants, pixels, registers=lambda _: options["maxnreg"],
                **how, **more)  # fmt: skip


def _with_pointers(constants: dict[str, Any]) -> dict[str, Any]:
    """The same launch with all its pointers given: those that are None are constants."""
    return {name: value for name, value in constants.items() if value is not None}


# warp_recon_general

RECON = {
    "C": 3, "PATCH": 16, "LOSS": "mse", "PADDING": "zeros", "ALIGN": False, "HAS_COLOR": False,
    "HAS_NORM": True, "SCALE": 1 / 255, "MASK_OUTSIDE": False, "PRED_GRAD": True,
    "THETA_GRAD": False, "BLOCK": 512, "color_ptr": None, "count_ptr": None, "dtheta_ptr": None,
}  # fmt: skip
RECON_EVERYTHING = _with_pointers(RECON) | {
    "HAS_COLOR": True, "MASK_OUTSIDE": True, "THETA_GRAD": True, "PATCH": 0,
    "PADDING": "reflection", "LOSS": "smooth_l1",
}  # fmt: skip


@section
def warp_recon_general_cases() -> Iterator[Case]:
    kernel = warp_recon_general.warp_recon_fwd_kernel
    yield Case("general", kernel, RECON, 512, ceilings=Ceilings(304, 306, 300))
    yield Case(
        "general, everything on", kernel, RECON_EVERYTHING, 512, ceilings=Ceilings(510, 512, 514),
        slow=True,
    )  # fmt: skip
    for padding in ("border", "zeros"):
        for align in (False, True):
            name = f"general, {padding}, align_corners={align}"
            options = {**RECON_EVERYTHING, "PADDING": padding, "ALIGN": align, "LOSS": "l1"}
            yield Case(name, kernel, options, 512, slow=True)
    types = {"pred_ptr": "*fp32", "grad_ptr": "*fp32", "image_ptr": "*fp32"}
    for channels, block in ((1, 128), (3, 128), (1, 512)):
        options = {**RECON_EVERYTHING, "C": channels, "BLOCK": block, "SCALE": 1.0}
        if channels != 3:
            options |= {"HAS_COLOR": False, "color_ptr": None}
        name = f"general, float32, {channels}, {block}"
        yield Case(name, kernel, options, block, types, slow=True)
    types |= {"image_ptr": "*u16"}
    for channels in (1, 4, 8, 12):
        options = {**RECON_EVERYTHING, "C": channels, "SCALE": 1 / 65535, "PATCH": 16}
        yield Case(f"general, 16 bits, {channels}", kernel, options, 512, types, slow=True)


# warp_recon_packed

PACKED = {
    "TEXEL": 3, "WHOLE_ROWS": True, "EXACT": False, "PATCH": 16, "TILE_W": 16, "TILE_H": 16,
    "INTERLEAVED": True, "LOSS": "mse", "PADDING": "zeros", "ALIGN": False, "HAS_COLOR": False,
    "MASK_OUTSIDE": False, "GRAD": True, "REDUCE": True, "color_ptr": None, "counts_ptr": None,
    "count_ptr": None,
}  # fmt: skip
PACKED_EVERYTHING = _with_pointers(PACKED) | {
    "EXACT": True, "HAS_COLOR": True, "MASK_OUTSIDE": True, "PADDING": "reflection",
    "LOSS": "smooth_l1", "PATCH": 0, "TILE_W": 32, "TILE_H": 8,
}  # fmt: skip


class Tile(NamedTuple):
    TILE_W: int
    TILE_H: int
    PATCH: int
    INTERLEAVED: bool


class Texel(NamedTuple):
    TEXEL: int  # bytes
    WHOLE_ROWS: bool


PAIRS_OF_PACKED: dict[str, tuple[Any, ...]] = {
    "dtype": ("*bf16", "*fp16", "*fp32"),
    "tile": (
        Tile(16, 16, 16, True), Tile(32, 8, 8, True), Tile(64, 4, 4, True), Tile(32, 32, 32, True),
        Tile(32, 8, 0, True), Tile(32, 8, 0, False),
    ),
    "texel": (Texel(3, True), Texel(3, False), Texel(4, True)),
    "LOSS": ("mse", "l1", "smooth_l1"),
    "PADDING": ("zeros", "border", "reflection"),
    **dict.fromkeys(("ALIGN", "HAS_COLOR", "MASK_OUTSIDE", "GRAD", "REDUCE"), (False, True)),
}  # fmt: skip


@section
def warp_recon_packed_cases() -> Iterator[Case]:
    wide = {"TILE_W": 32, "TILE_H": 8}
    for name, changes, ceilings in (
        ("rgb", {}, Ceilings(86, 86, 86)),
        ("rgbx", {"TEXEL": 4}, Ceilings(74, 74, 74)),
        ("rgb, rows of any bytes", {"WHOLE_ROWS": False}, Ceilings(91, 91, 91)),
        ("rgb, patches of 8", {"PATCH": 8, **wide}, Ceilings(86, 86, 85)),
        ("rgb, images", {"PATCH": 0, **wide, "INTERLEAVED": False}, Ceilings(89, 88, 88)),
        ("rgb, forward", {"GRAD": False}, Ceilings(82, 82, 79)),
        ("rgb, recoloured", {"HAS_COLOR": True}, Ceilings(99, 99, 98)),
        ("rgb, one step", {"K": 1, "NB": 1, "ROWS": 1}, None),  # ones become constants
    ):
        slow = name != "rgb"  # seconds each, of the same code but for a branch
        yield _packed(f"packed, {name}", "*bf16", changes, ceilings=ceilings, slow=slow)
    yield _packed("packed, rgb, float32", "*fp32", {}, ceilings=Ceilings(98, 96, 99), slow=True)
    yield _packed("packed, everything on", "*fp32", PACKED_EVERYTHING, slow=True)
    images = {**PACKED_EVERYTHING, "INTERLEAVED": False}
    yield _packed("packed, everything on, images", "*fp32", images, slow=True)
    for number, row in enumerate(_pairwise(PAIRS_OF_PACKED)):
        dtype, tile, texel = (row.pop(name) for name in ("dtype", "tile", "texel"))
        row |= tile._asdict() | texel._asdict()
        yield _packed(f"packed, pairs of options {number}", dtype, row, slow=True)


def _packed(name: str, dtype: str, changes: dict[str, Any], **more: Any) -> Case:
    constants = {**PACKED, **changes, "EXACT": dtype == "*fp32"}
    for needed, pointers in (
        ("HAS_COLOR", ("color_ptr",)),
        ("MASK_OUTSIDE", ("counts_ptr", "count_ptr")),
    ):
        if constants[needed]:
            constants = {key: value for key, value in constants.items() if key not in pointers}
    pixels = constants["TILE_W"] * constants["TILE_H"]
    return Case(
        name,
        warp_recon_packed.warp_recon_packed_kernel,
        constants,
        pixels,
        types={"pred_ptr": dtype, "grad_ptr": dtype},
        warps=pixels // 128,
        registers=_registers_of_packed(constants, warp_recon_packed.REGISTERS),
        loops=True,
        **more,
    )


def _registers_of_packed(constants: dict[str, Any], *plain: int) -> Callable[[int], int]:
    exact, color = constants["EXACT"], constants["HAS_COLOR"]
    return lambda arch: packed.registers(arch // 10, exact, color, *plain)


def _pairwise(options: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """A few rows in which any two values of two options meet."""
    draw = random.Random(0)

    def pairs(row: dict[str, Any]) -> set[Any]:
        return set(combinations(row.items(), 2))

    left = set()
    for a, b in combinations(options, 2):
        left |= {((a, x), (b, y)) for x in options[a] for y in options[b]}
    while left:
        rows = [{name: draw.choice(values) for name, values in options.items()} for _ in range(99)]
        best = max(rows, key=lambda row: len(pairs(row) & left))
        best |= dict(min(left, key=repr))
        left -= pairs(best)
        yield best


# warp, warp_packed

WARP = {
    "C": 3, "PADDING": "zeros", "ALIGN": False, "HAS_COLOR": False, "HAS_NORM": True,
    "SCALE": 1 / 255, "ROUND": False, "BLOCK": 512, "color_ptr": None,
}  # fmt: skip
WARP_PACKED = {
    "TEXEL": 3, "WHOLE_ROWS": True, "EXACT": False, "TILE_W": 32, "TILE_H": 8, "PADDING": "zeros",
    "ALIGN": False, "HAS_COLOR": False, "ROUND": False, "color_ptr": None,
}  # fmt: skip


@section
def warp_cases() -> Iterator[Case]:
    yield Case("warp", warp.warp_fwd_kernel, WARP, 512, ceilings=Ceilings(310, 322, 322))
    types = {"image_ptr": "*u16", "out_ptr": "*fp32"}
    for channels in (4, 12):
        options = {**WARP, "C": channels, "HAS_COLOR": True, "SCALE": 1 / 65535}
        options.pop("color_ptr", None)
        yield Case(
            f"warp, 16 bits, {channels}", warp.warp_fwd_kernel, options, 512, types, slow=True
        )


@section
def warp_packed_cases() -> Iterator[Case]:
    yield _warp_packed("rgb", "*bf16", {}, ceilings=Ceilings(81, 80, 78))
    yield _warp_packed("rgbx", "*bf16", {"TEXEL": 4}, ceilings=Ceilings(65, 65, 64), slow=True)
    recoloured = {"HAS_COLOR": True}
    ceilings = Ceilings(83, 84, 81)
    yield _warp_packed("rgb, recoloured", "*bf16", recoloured, ceilings=ceilings, slow=True)
    rounded = {"ROUND": True, "PADDING": "reflection"}
    yield _warp_packed("rgb to rgb", "*u8", rounded, slow=True)
    for dtype in ("*fp16", "*fp32"):
        for color in (False, True):
            changes = {"HAS_COLOR": color, "PADDING": "border", "WHOLE_ROWS": False}
            yield _warp_packed(f"{dtype}, border, color={color}", dtype, changes, slow=True)


def _warp_packed(name: str, dtype: str, changes: dict[str, Any], **more: Any) -> Case:
    constants = {**WARP_PACKED, **changes, "EXACT": dtype in ("*fp32", "*u8")}
    if constants["HAS_COLOR"]:
        del constants["color_ptr"]
    return Case(
        f"warp packed, {name}",
        warp_packed.warp_packed_kernel,
        constants,
        256,
        types={"out_ptr": dtype},
        warps=2,
        registers=_registers_of_packed(constants),
        loops=True,
        **more,
    )


# blur

BLUR = {"HAS_NORM": True, "GRAD": True, "FAR": False, "stride_ic": 1, "stride_ix": 3}


@section
def blur_cases() -> Iterator[Case]:
    """Counted is one turn: a block of columns. A pixel is one of an image and σ."""
    for name, options, ceilings in (
        ("blur", {}, Ceilings(57, 57, 57)),
        ("blur images", {"loss": "none"}, Ceilings(22, 22, 22)),
        ("blur images, a few", {"loss": "none", "steps": 2}, None),
        ("blur images, float32", {"loss": "none", "dtype": torch.float32}, None),
        ("blur, l1", {"loss": "l1"}, None),
        ("blur, float32", {"dtype": torch.float32, "loss": "smooth_l1"}, None),
        ("blur, one", {"steps": 1}, None),
        ("blur, images", {"patch_size": 0}, None),
        ("blur, gray", {"channels": 1}, None),
        ("blur, wide", {"max_sigma": 4.0}, None),
        ("blur images, wide", {"loss": "none", "max_sigma": 4.0}, None),
        ("blur, 8", {"max_sigma": 8.0}, None),
        ("blur images, 16", {"loss": "none", "max_sigma": 16.0}, None),
        ("blur images, far", {"loss": "none", "FAR": True}, None),
    ):
        slow = name not in ("blur", "blur images")
        yield _blur(name, **options, loops=ceilings is not None, ceilings=ceilings, slow=slow)
    for sigma in (2.0, 4.0, 16.0):
        for steps in (1, 4):
            options = {"source": torch.float32, "dtype": torch.float32, "max_sigma": sigma}
            yield _blur(f"blur of floats, {sigma} {steps}", **options, steps=steps, slow=True)


def _blur(
    name: str, steps: int = 4, channels: int = 3, dtype: torch.dtype = torch.bfloat16,
    source: torch.dtype = torch.uint8, FAR: bool = False, loss: str = "mse", patch_size: int = 16,
    max_sigma: float = 2.0, **more: Any,
) -> Case:  # fmt: skip
    target = blur.BlurTarget(0 if loss == "none" else patch_size, loss, max_sigma=max_sigma)
    pred, image = torch.empty(1, dtype=dtype), torch.empty(1, channels, 1, 1, dtype=source)
    config = BLUR | blur.launch_config(pred, image, steps, target) | {"FAR": FAR}
    if not target.patch_size:
        config["stride_p2"] = 1
    types = {"image_ptr": "*u8" if source == torch.uint8 else _pointer(source)}
    if dtype != torch.bfloat16:
        types |= {"pred_ptr": _pointer(dtype), "out_ptr": _pointer(dtype)}
    pixels = config["STACK"] * config["ROWS"] * config["COLS"]
    return _by_table(name, blur.blur_fwd_kernel, config, pixels, types=types, **more)


# fused_views_kernels


VIEWS = {
    **fused_views_kernels.LAUNCH, "BITS": 8, "GROUP": 3, "TOGETHER": True,
    "RANGE": False, "CUT": False, "COLOR": True, "EACH": False, "TOP": 255.0, "MOST": 0,
    "LAST": True, "FAR": False, "stride_ox": 1,
}  # fmt: skip
VIEWS_EVERYTHING = VIEWS | {
    "TOGETHER": False, "RANGE": True, "CUT": True, "EACH": True, "TOP": 1.0,
    **fused_views_kernels.WITH_ENDS,
}  # fmt: skip


@section
def fused_views_kernels_cases() -> Iterator[Case]:
    """Counted are a pixel of the photograph and a tap of a blur, of all channels of a group; of one
    channel, and of two with Triton 3.6, the compiler makes one turn of four pixels.
    """
    for name, blurs, changes, dtype, ceilings in (
        ("views", False, {}, "*bf16", Ceilings(16, 17, 17)),
        ("views, rows blurred", True, {"LAST": False}, "*fp32", Ceilings(21, 21, 21)),
        ("views, columns blurred", True, {}, "*bf16", Ceilings(11, 11, 11)),
    ):
        yield _views(name, blurs, dtype, changes, ceilings=ceilings)
    for dtype in ("*fp16", "*fp32", "*u8", "*u16"):
        changes = {"MOST": {"*u8": 255, "*u16": 65535}.get(dtype, 0)}
        if dtype == "*u8":
            changes |= {"stride_oc": 1, "stride_ox": 3}
        yield _views(f"views {dtype}", False, dtype, changes, slow=True)
        yield _views(f"views, columns blurred {dtype}", True, dtype, changes, slow=True)
        yield _views(f"views, blurred far {dtype}", True, dtype, changes | {"FAR": True}, slow=True)
    planes = {"LAST": False}
    yield _views("views, planes", False, "*fp32", planes, slow=True)
    yield _views("views, rows blurred far", True, "*fp32", planes | {"FAR": True}, slow=True)
    of_sixteen = {"BITS": 16, "RANGE": True, "COLOR": False, "TOP": 1.0}
    for channels, ceilings in (
        (1, Ceilings(38, 42, 42)), (2, Ceilings(50, 14, 14)), (4, Ceilings(19, 20, 20))
    ):  # fmt: skip
        group = {"GROUP": channels}
        if channels == 1:  # ones become constants
            group |= {"STORED": 1, "C": 1}
        name = f"views of {channels} channels of 16 bits"
        yield _views(name, False, "*bf16", of_sixteen | group, ceilings=ceilings, slow=True)
        name = f"views of {channels} channels, columns blurred"
        yield _views(name, True, "*bf16", group, slow=True)
    for bits in (8, 16, 32):
        for group in (1, 2, 3, 4):
            changes = VIEWS_EVERYTHING | {"BITS": bits, "GROUP": group, "COLOR": group == 3}
            name = f"views, everything on, {group} of {bits} bits"
            ceilings = Ceilings(37, 38, 38) if group == 4 else None
            yield _views(name, False, "*bf16", changes, ceilings=ceilings, slow=True)


def _views(name: str, blurs: bool, dtype: str, changes: dict[str, Any], **more: Any) -> Case:
    kernel = fused_views_kernels.views_resample_kernel
    if blurs:
        kernel = fused_views_kernels.views_blur_kernel
    constants = VIEWS | changes
    pixels = constants["TILE_H"] * constants["TILE_W"]
    options = {"types": {"out_ptr": dtype}, "loops": True, **more}
    return _by_table(name, kernel, constants, pixels, **options)


# dino, sinkhorn

DINO = {
    "HAS_ROW": True, "HAS_COLUMN": True, "HAS_LSE": False, "lse_ptr": None, "GRAD": True,
    "FULL": True, "BLOCK": sinkhorn.BLOCK, "VEC": sinkhorn.VEC,
}  # fmt: skip


@section
def dino_cases() -> Iterator[Case]:
    known = _with_pointers(DINO) | {"HAS_LSE": True}
    ibot = DINO | {"HAS_ROW": False, "row_ptr": None}
    for name, constants, ceilings in (
        ("dino", DINO, Ceilings(44, 43, 42)),
        ("ibot", ibot, Ceilings(58, 58, 57)),
        ("dino, ragged", DINO | {"FULL": False}, None),
        ("dino, columns", known, Ceilings(30, 29, 29)),
    ):
        yield Case(name, dino_triton.dino_kernel, constants, sinkhorn.BLOCK, warps=sinkhorn.WARPS,
                   ceilings=ceilings, slow=name not in ("dino", "dino, columns"))  # fmt: skip
    views = {
        "PAIRS": 2, "ROW_PARTS": 8, "LSE_PARTS": 2, "HAS_COLUMN": True, "GRAD": True,
        **dino_triton.views_blocks(65536, torch.bfloat16, 2),
    }  # fmt: skip
    yield _by_table("dino, views", dino_triton.dino_views_kernel, views, views["BLOCK"],
                    ceilings=Ceilings(48, 48, 48))  # fmt: skip
    for dtype in (torch.float16, torch.float32):
        types = dict.fromkeys(("student_ptr", "teacher_ptr", "grad_ptr"), _pointer(dtype))
        for width, pairs in ((65536, 4), (300, 2), (20, 3)):
            blocks = dino_triton.views_blocks(width, dtype, pairs)
            config = views | {"PAIRS": pairs} | blocks
            name = f"dino, views {_pointer(dtype)} {width}"
            yield _by_table(
                name, dino_triton.dino_views_kernel, config, blocks["BLOCK"], types=types, slow=True
            )
        for width in (65536, 300, 20):
            config = DINO | sinkhorn.row_blocks(width, dtype)
            name = f"dino {_pointer(dtype)} {width}"
            block = config["BLOCK"]
            yield _by_table(name, dino_triton.dino_kernel, config, block, types=types, slow=True)


@section
def sinkhorn_cases() -> Iterator[Case]:
    block, warps = sinkhorn.BLOCK, sinkhorn.WARPS
    constants = {"HAS_COLUMN": True, "FULL": True, "BLOCK": block, "VEC": sinkhorn.VEC}
    yield Case("row_lse", sinkhorn.row_lse_kernel, constants, block, warps=warps,
               ceilings=Ceilings(20, 20, 19))  # fmt: skip
    constants = {"ROWS": 16, "BLOCK": 128}
    yield Case("column_lse", sinkhorn.column_lse_kernel, constants, 16 * 128)


def _pointer(dtype: torch.dtype) -> str:
    return {torch.float16: "*fp16", torch.float32: "*fp32"}[dtype]


# correspondence, crop_align


@section
def correspondence_cases() -> Iterator[Case]:
    tiles = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_C": 64, "PRECISION": "tf32", "WIDEN": False}
    kernel, pixels = correspondence.best_matches_kernel, 32 * 64
    yield Case("best_matches_kernel", kernel, {"FLIP": 0, **tiles}, pixels)
    yield Case("matched_kernel", correspondence.matched_kernel, tiles, pixels)
    ranks = {"BLOCK": correspondence._RANKED}
    yield Case("counted_kernel", correspondence.counted_kernel, ranks, ranks["BLOCK"])
    for dtype in (torch.float16, torch.float32):
        config = {"FLIP": 1, **correspondence.launch_config(torch.empty(1, dtype=dtype))}
        types = dict.fromkeys(("s_ptr", "t_ptr"), _pointer(dtype))
        name = f"best_matches {_pointer(dtype)}"
        yield _by_table(name, kernel, config, pixels, types=types, slow=True)


@section
def crop_align_cases() -> Iterator[Case]:
    kernel = crop_align.crop_align_kernel
    for bins, cells in ((10, 14), (4, 14)):  # pairs of global and of local crops
        config = crop_align.launch_config(torch.bfloat16, bins, cells)
        config |= {"MOST": -(-cells // bins), "WIDEN": False, "BLOCK_X": 16}
        pixels = config["BLOCK_O"] * config["BLOCK_C"]
        both = {**config, "BLOCK_XT": 16, "GRAD": True}
        slow = bins == 4
        yield _by_table(f"crop_align {bins}", kernel, both, pixels, slow=slow)
        spread = crop_align.spread_kernel
        yield _by_table(f"spread {bins}", spread, config, pixels, slow=slow)
    for dtype in (torch.float16, torch.float32):
        names = "student_ptr", "teacher_ptr", "grad_ptr", "pooled_ptr"
        types = dict.fromkeys(names, _pointer(dtype))
        for bins, cells in ((14, 32), (7, 37)):
            block = crop_align.block_of(cells)
            config = crop_align.launch_config(dtype, bins, cells)
            config |= {"MOST": -(-cells // bins), "WIDEN": False, "GRAD": True}
            config |= {"BLOCK_X": block, "BLOCK_XT": block}
            pixels = config["BLOCK_O"] * config["BLOCK_C"]
            name = f"crop_align {_pointer(dtype)} {bins} {cells}"
            yield _by_table(name, kernel, config, pixels, types=types, slow=True)


# rot90_batch


@section
def rot90_batch_cases() -> Iterator[Case]:
    kernel, tile = rot90_batch.rot90_batch_kernel, rot90_batch.TILE
    dense = {"stride_ix": 3, "stride_ic": 1, "stride_ox": 1}
    four = {"C": 3, "ALL": True, "TILE": tile, "turns_ptr": None, **dense}
    yield Case("rot90_batch", kernel, four, 4 * tile * tile, warps=rot90_batch.WARPS,
               ceilings=Ceilings(22, 22, 22))  # fmt: skip
    one = {"C": 3, "ALL": False, "TILE": tile, **dense, "stride_oc": 1, "stride_ox": 3}
    name = "rot90_batch, one, last"
    yield Case(name, kernel, one, tile * tile, warps=rot90_batch.WARPS, slow=True)
    deep, group = {"image_ptr": "*u16"}, {**four, "C": rot90_batch.GROUP, "stride_ix": 5}
    name = "rot90_batch, uint16"
    yield Case(name, kernel, group, 4 * tile * tile, deep, warps=rot90_batch.WARPS, slow=True)


# vicreg


@section
def vicreg_cases() -> Iterator[Case]:
    constants = {"GRAD": True, "ROWS": vicreg.ROWS, "BLOCK": vicreg.BLOCK}
    types, pixels = {"grad_ptr": "*fp32"}, vicreg.ROWS * vicreg.BLOCK
    kernel = vicreg.vicreg_columns_kernel
    yield Case("vicreg", kernel, constants, pixels, types, warps=vicreg.WARPS)


# unit_rows, nt_xent, koleo


@section
def unit_rows_cases() -> Iterator[Case]:
    forward, backward = unit_rows.unit_rows_kernel, unit_rows.unit_rows_grad_kernel
    for width in (128, 768, 2048, 8192):
        config = unit_rows.launch_config(width)
        tile = config["BLOCK_R"] * config["BLOCK_C"]
        for dtype in ("*bf16", "*fp32"):
            types, slow = {"x_ptr": dtype}, (width, dtype) != (768, "*bf16")
            name = f"unit rows {width} {dtype}"
            yield _by_table(name, forward, config, tile, types=types, slow=slow)
            types |= {"out_ptr": dtype}
            yield _by_table(f"{name}, backward", backward, config, tile, types=types, slow=slow)


@section
def nt_xent_cases() -> Iterator[Case]:
    lse, grad = nt_xent.nt_xent_lse_kernel, nt_xent.nt_xent_grad_kernel
    for width in (128, 256, 512):
        config = similarities.launch_config(torch.empty(1, width, dtype=torch.bfloat16))
        config["WIDEN"], tile = False, config["BLOCK_M"] * config["BLOCK_G"]
        slow = width > 128
        if width < 512:
            yield _by_table(f"nt_xent {width}", lse, config, tile, slow=slow)
        types, name = {"grad_ptr": "*fp32"}, f"nt_xent gradient {width}"
        yield _by_table(name, grad, config, tile, types=types, slow=slow)
    for dtype in (torch.float16, torch.float32):
        types = dict.fromkeys(("z_ptr", "every_ptr"), _pointer(dtype)) | {"grad_ptr": "*fp32"}
        for width in (16, 64) if dtype == torch.float32 else (16, 256, 512):
            config = similarities.launch_config(torch.empty(1, width, dtype=dtype))
            tile = config["BLOCK_M"] * config["BLOCK_G"]
            end = f"{_pointer(dtype)} {width}"
            yield _by_table(f"nt_xent {end}", lse, config, tile, types=types, slow=True)
            yield _by_table(f"nt_xent gradient {end}", grad, config, tile, types=types, slow=True)


@section
def koleo_cases() -> Iterator[Case]:
    types = {"out_ptr": "*i64"}
    config = similarities.launch_config(torch.empty(1, 128, dtype=torch.bfloat16)) | {
        "WIDEN": False
    }
    yield _by_table("nearest", koleo.nearest_kernel, config, 4096, types=types)
    for width in (256, 8192):
        config = unit_rows.launch_config(width)
        tile, config["GRAD"] = config["BLOCK_R"] * config["BLOCK_C"], True
        name, kernel, slow = f"koleo distances {width}", koleo.distance_kernel, width > 256
        yield _by_table(name, kernel, config, tile, slow=slow)
    for dtype in (torch.float16, torch.float32):
        types = dict.fromkeys(("z_ptr", "every_ptr"), _pointer(dtype)) | {"out_ptr": "*i64"}
        for width in (16, 64) if dtype == torch.float32 else (16, 256, 512):
            config = similarities.launch_config(torch.empty(1, width, dtype=dtype))
            tile, name = config["BLOCK_M"] * config["BLOCK_G"], f"nearest {_pointer(dtype)} {width}"
            yield _by_table(name, koleo.nearest_kernel, config, tile, types=types, slow=True)


# linear_recon


@section
def linear_recon_cases() -> Iterator[Case]:
    kernel, config = linear_recon.column_sums_kernel, linear_recon.SUMS
    for dtype in ("*bf16", "*fp16", "*fp32"):
        name = "column sums" + ("" if dtype == "*bf16" else f" {dtype}")
        types = {"x_ptr": dtype}
        tile = config["ROWS"] * config["BLOCK"]
        slow = dtype != "*bf16"
        yield _by_table(name, kernel, config, tile, types=types, loops=True, slow=slow)


# overlap


@section
def overlap_cases() -> Iterator[Case]:
    kernels = {"add": overlap.overlap_add_kernel, "spread": overlap.overlap_spread_kernel}
    for dtype in ("*bf16", "*fp16", "*fp32"):
        types = dict.fromkeys(("windows_ptr", "patches_ptr"), dtype)
        for patch, over in ((16, 4), (14, 7), (8, 2)):
            config = {**overlap.ADD, "C": 3, "P": patch, "OVER": over}
            slow = (dtype, patch) != ("*bf16", 16)
            for name, kernel in kernels.items():
                label = f"overlap {name} {patch} {over} {dtype}"
                yield _by_table(label, kernel, config, config["BLOCK"], types=types, slow=slow)


# gram


@section
def gram_cases() -> Iterator[Case]:
    panel, grad = gram.gram_panel_kernel, gram.gram_grad_kernel
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        types = {}
        if dtype != torch.bfloat16:
            types = dict.fromkeys(("x_ptr", "y_ptr", "panel_ptr"), _pointer(dtype))
            types["grad_ptr"] = "*fp32"
        for rows in (196, 1024) if dtype != torch.float32 else (196,):
            features, end = torch.empty(1, rows, 1, dtype=dtype), f"{dtype} {rows}".split(".")[1]
            slow = end != "bfloat16 196"
            config = gram.launch_config(features) | {"WIDEN": False, "GRAD": True}
            tile = config["BLOCK_M"] * config["BLOCK_N"]
            for name, changes, late in (
                ("gram panel", {"CLAMP": "both", "MIRROR": True}, slow),
                ("gram panel, a part", {"CLAMP": "teacher", "MIRROR": False}, True),
                ("gram panel, forward", {"CLAMP": "none", "MIRROR": True, "GRAD": False}, True),
            ):
                constants = config | changes
                yield _by_table(f"{name} {end}", panel, constants, tile, types=types, slow=late)
            config = gram.launch_config(features, grad=True) | {"WIDEN": False}
            tile = config["BLOCK_M"] * config["BLOCK_C"]
            yield _by_table(f"gram gradient {end}", grad, config, tile, types=types, slow=slow)


# autograd: what scales a gradient in place


@section
def autograd_cases() -> Iterator[Case]:
    for size in ("i32", "i64"):
        name = f"rescale {size}"
        constants, slow = {"BLOCK": 1024}, size == "i64"
        yield Case(name, autograd.rescale_kernel, constants, 1024, {"n": size}, slow=slow)
