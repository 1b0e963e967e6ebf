"""What the kernels are launched with: types, constants, warps and registers of each case.

For `sass.py`, which compiles them. Where a kernel's file has a launch table it is asked.
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
    dino,
    koleo,
    nt_xent,
    packed,
    rot90_batch,
    similarities,
    sinkhorn,
    vicreg,
    warp,
    warp_packed,
    warp_recon_general,
    warp_recon_packed,
)

POINTERS = {
    "pred_ptr": "*bf16", "image_ptr": "*u8", "theta_ptr": "*fp32", "color_ptr": "*fp32",
    "mean_ptr": "*fp32", "std_ptr": "*fp32", "sigma_ptr": "*fp32", "total_ptr": "*fp32",
    "count_ptr": "*fp32", "parts_ptr": "*fp32", "counts_ptr": "*fp32", "arrived_ptr": "*i32",
    "student_ptr": "*bf16", "teacher_ptr": "*bf16", "pairs_ptr": "*i32", "weight_ptr": "*fp32",
    "row_ptr": "*fp32", "column_ptr": "*fp32", "loss_ptr": "*fp32", "x_ptr": "*bf16",
    "grad_ptr": "*bf16", "dtheta_ptr": "*fp32", "out_ptr": "*bf16",
}  # fmt: skip
FLOATS = {
    "max_sigma", "weight", "scale", "student_scale", "teacher_scale", "inverse_temp", "mean0",
    "mean1", "mean2", "gain0", "gain1", "gain2", "slope_inv", "slope_var", "slope_cov",
}  # fmt: skip
# 224×224 images: sizes and strides that are multiples of 16
EVEN = {
    "H", "W", "HS", "WS", "stride_pb", "stride_pk", "stride_pc", "stride_py", "stride_pl",
    "stride_ib", "stride_iy", "N", "D", "stride_z", "stride_e", "stride_s", "stride_t", "stride_g",
    "stride_r", "stride_1", "stride_2", "stride_ob", "stride_oc", "stride_oy",
    "stride_sv", "stride_sb", "stride_sm", "stride_tv", "stride_tb", "stride_tm", "stride_tn", "C",
}  # fmt: skip

RECON = {
    "C": 3, "PATCH": 16, "LOSS": "mse", "PADDING": "zeros", "ALIGN": False, "HAS_COLOR": False,
    "HAS_NORM": True, "SCALE": 1 / 255, "MASK_OUTSIDE": False, "PRED_GRAD": True,
    "THETA_GRAD": False, "BLOCK": 512, "color_ptr": None, "count_ptr": None, "dtheta_ptr": None,
}  # fmt: skip
EVERY = {
    **{name: value for name, value in RECON.items() if value is not None}, "HAS_COLOR": True,
    "MASK_OUTSIDE": True, "THETA_GRAD": True, "PATCH": 0, "PADDING": "reflection",
    "LOSS": "smooth_l1",
}  # fmt: skip
PACKED = {
    "TEXEL": 3, "WHOLE_ROWS": True, "EXACT": False, "PATCH": 16, "TILE_W": 16, "TILE_H": 16,
    "INTERLEAVED": True, "LOSS": "mse", "PADDING": "zeros", "ALIGN": False, "HAS_COLOR": False,
    "MASK_OUTSIDE": False, "GRAD": True, "REDUCE": True, "color_ptr": None, "counts_ptr": None,
    "count_ptr": None,
}  # fmt: skip
PACKED_EVERY = {
    **{name: value for name, value in PACKED.items() if value is not None}, "EXACT": True,
    "HAS_COLOR": True, "MASK_OUTSIDE": True, "PADDING": "reflection", "LOSS": "smooth_l1",
    "PATCH": 0, "TILE_W": 32, "TILE_H": 8,
}  # fmt: skip
WARP = {
    "C": 3, "PADDING": "zeros", "ALIGN": False, "HAS_COLOR": False, "HAS_NORM": True,
    "SCALE": 1 / 255, "ROUND": False, "BLOCK": 512, "color_ptr": None,
}  # fmt: skip
WARP_PACKED = {
    "TEXEL": 3, "WHOLE_ROWS": True, "EXACT": False, "TILE_W": 32, "TILE_H": 8, "PADDING": "zeros",
    "ALIGN": False, "HAS_COLOR": False, "ROUND": False, "color_ptr": None,
}  # fmt: skip
BLUR = {
    "C": 3, "PATCH": 16, "LOSS": "mse", "HAS_NORM": True, "SCALE": 1 / 255, "GRAD": True,
}  # fmt: skip
DINO = {
    "PAIRS": 2, "HAS_ROW": True, "HAS_COLUMN": True, "HAS_LSE": False, "lse_ptr": None,
    "GRAD": True, "FULL": True, "BLOCK": sinkhorn.BLOCK, "VEC": sinkhorn.VEC,
}  # fmt: skip


_OPTIONS = "num_warps", "maxnreg", "num_stages"


def _any(arch: int) -> None:
    """As many registers as the compiler likes."""


class Case(NamedTuple):
    """One compilation: arguments' types are POINTERS' where `types` does not say otherwise."""

    name: str
    kernel: Any
    constants: dict
    types: dict
    warps: int
    registers: Callable[[int], int | None]  # allowed on an architecture
    pixels: int  # of a turn, or values
    stages: int | None = None  # of loads ahead, where a launch table says


def cases() -> Iterator[Case]:
    """What is compiled in every test run."""
    general = warp_recon_general.warp_recon_fwd_kernel
    yield Case("general", general, RECON, {}, 4, _any, 512)
    yield Case("general, everything on", general, EVERY, {}, 4, _any, 512)
    yield Case("warp", warp.warp_fwd_kernel, WARP, {}, 4, _any, 512)
    for name, sigma in (("blur", 2.0), ("blur, wide", 4.0)):
        yield _case(name, blur.blur_fwd_kernel, BLUR | blur.launch_config(sigma), {}, 256)
    known = {name: value for name, value in DINO.items() if name != "lse_ptr"} | {"HAS_LSE": True}
    block, warps = sinkhorn.BLOCK, sinkhorn.WARPS
    for name, constants, types in (
        ("dino", DINO, {}),
        ("ibot", DINO | {"PAIRS": 1, "HAS_ROW": False, "row_ptr": None}, {}),
        ("dino, ragged", DINO | {"FULL": False}, {}),
        ("dino, columns", known, {"lse_ptr": "*fp32"}),
    ):
        yield Case(name, dino.dino_kernel, constants, types, warps, _any, block)
    row_lse = {"HAS_COLUMN": True, "FULL": True, "BLOCK": block, "VEC": sinkhorn.VEC}
    yield Case("row_lse", sinkhorn.row_lse_kernel, row_lse, {}, warps, _any, block)
    column_lse = {"ROWS": 16, "BLOCK": 128}
    yield Case("column_lse", sinkhorn.column_lse_kernel, column_lse, {}, 4, _any, 16 * 128)
    types = {
        "s_ptr": "*bf16", "t_ptr": "*bf16", "high_ptr": "*fp32", "at_ptr": "*i32",
        "forth_ptr": "*i32", "back_ptr": "*i32", "forth_weight_ptr": "*fp32",
        "back_weight_ptr": "*fp32",
    }  # fmt: skip
    tiles = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_C": 64, "PRECISION": "tf32", "WIDEN": False}
    kernel = correspondence.best_matches_kernel
    yield Case("best_matches_kernel", kernel, {"FLIP": 0, **tiles}, types, 4, _any, 32 * 64)
    yield Case("matched_kernel", correspondence.matched_kernel, tiles, types, 4, _any, 32 * 64)
    types = {
        "student_boxes_ptr": "*fp32", "teacher_boxes_ptr": "*fp32", "turns_ptr": "*i32",
        "cosine_ptr": "*fp32", "pooled_ptr": "*bf16", "boxes_ptr": "*fp32",
    }  # fmt: skip
    for bins, cells in ((10, 14), (4, 14)):  # global and local crops' pairs
        config = crop_align.launch_config(torch.bfloat16, bins, cells)
        config |= {"MOST": -(-cells // bins), "WIDEN": False, "BLOCK_X": 16}
        pixels = config["BLOCK_O"] * config["BLOCK_C"]
        both, kernel = {**config, "BLOCK_XT": 16, "GRAD": True}, crop_align.crop_align_kernel
        yield _case(f"crop_align {bins}", kernel, both, types, pixels)
        yield _case(f"spread {bins}", crop_align.spread_kernel, config, types, pixels)
    types = {"turns_ptr": "*i32", "means_ptr": "*fp32", "gains_ptr": "*fp32"}
    kernel, tile, warps = rot90_batch.rot90_batch_kernel, rot90_batch.TILE, rot90_batch.WARPS
    dense = {"stride_ix": 3, "stride_ic": 1, "stride_ox": 1}
    constants = {"C": 3, "ALL": True, "TILE": tile, "turns_ptr": None, **dense}
    yield Case("rot90_batch", kernel, constants, types, warps, _any, 4 * tile * tile)
    constants = {"C": 3, "ALL": False, "TILE": tile, **dense, "stride_oc": 1, "stride_ox": 3}
    yield Case("rot90_batch, one, last", kernel, constants, types, warps, _any, tile * tile)
    constants = {"GRAD": True, "ROWS": vicreg.ROWS, "BLOCK": vicreg.BLOCK}
    types = {f"{name}_ptr": "*fp32" for name in ("z1", "z2", "centred", "grad", "sums")}
    kernel, pixels = vicreg.vicreg_columns_kernel, vicreg.ROWS * vicreg.BLOCK
    yield Case("vicreg", kernel, constants, types, vicreg.WARPS, _any, pixels)
    for size in ("i32", "i64"):
        constants, types = {"BLOCK": 1024}, {"factor_ptr": "*fp32", "n": size}
        yield Case(f"rescale {size}", autograd.rescale_kernel, constants, types, 4, _any, 1024)
    types = {"z_ptr": "*bf16", "every_ptr": "*bf16", "ids_ptr": "*i64", "positives_ptr": "*i64",
             "negative_ptr": "*fp32", "positive_ptr": "*fp32", "lse_ptr": "*fp32",
             "every_lse_ptr": "*fp32", "pull_ptr": "*fp32", "grad_ptr": "*fp32"}  # fmt: skip
    for width in (128, 256, 512):
        config = similarities.launch_config(torch.empty(1, width, dtype=torch.bfloat16))
        config["WIDEN"], tile = False, config["BLOCK_M"] * config["BLOCK_G"]
        if width < 512:
            yield _case(f"nt_xent {width}", nt_xent.nt_xent_lse_kernel, config, types, tile)
        kernel = nt_xent.nt_xent_grad_kernel
        yield _case(f"nt_xent gradient {width}", kernel, config, types, tile)
    types = {**types, "out_ptr": "*i64"}
    config = similarities.launch_config(torch.empty(1, 128, dtype=torch.bfloat16)) | {
        "WIDEN": False
    }
    yield _case("nearest", koleo.nearest_kernel, config, types, 4096)
    for padding in ("border", "zeros"):
        for align in (False, True):
            name = f"general, {padding}, align_corners={align}"
            options = {**EVERY, "PADDING": padding, "ALIGN": align, "LOSS": "l1"}
            yield Case(name, general, options, {}, 4, _any, 512)
    for name, changes in (
        ("rgb", {}),
        ("rgbx", {"TEXEL": 4}),
        ("rgb, rows of any bytes", {"WHOLE_ROWS": False}),
        ("rgb, patches of 8", {"PATCH": 8, "TILE_W": 32, "TILE_H": 8}),
        ("rgb, images", {"PATCH": 0, "TILE_W": 32, "TILE_H": 8, "INTERLEAVED": False}),
        ("rgb, forward", {"GRAD": False}),
        ("rgb, recoloured", {"HAS_COLOR": True}),
        ("rgb, one step", {"K": 1, "NB": 1, "ROWS": 1}),  # ones become constants
    ):
        yield _packed(f"packed, {name}", "*bf16", changes)
    yield _packed("packed, rgb, float32", "*fp32", {})
    yield _packed("packed, everything on", "*fp32", PACKED_EVERY)
    yield _packed("packed, everything on, images", "*fp32", {**PACKED_EVERY, "INTERLEAVED": False})
    yield _warp_packed("rgb", "*bf16", {})
    yield _warp_packed("rgbx", "*bf16", {"TEXEL": 4})
    yield _warp_packed("rgb, recoloured", "*bf16", {"HAS_COLOR": True})
    yield _warp_packed("rgb to rgb", "*u8", {"ROUND": True, "PADDING": "reflection"})


def _case(name: str, kernel: Any, config: dict, types: dict, pixels: int) -> Case:
    """Of a launch table's keyword arguments."""
    warps, allowed, stages = (config.get(key) for key in _OPTIONS)
    constants = {key: value for key, value in config.items() if key not in _OPTIONS}
    return Case(name, kernel, constants, types, warps, lambda _: allowed, pixels, stages)


def _registers(constants: dict) -> Callable[[int], int]:
    exact, color = constants["EXACT"], constants["HAS_COLOR"]
    return lambda arch: packed.registers(arch // 10, exact, color)


def _packed(name: str, dtype: str, changes: dict) -> Case:
    constants = {**PACKED, **changes, "EXACT": dtype == "*fp32"}
    for needed, pointers in (
        ("HAS_COLOR", ("color_ptr",)),
        ("MASK_OUTSIDE", ("counts_ptr", "count_ptr")),
    ):
        if constants[needed]:
            constants = {key: value for key, value in constants.items() if key not in pointers}
    pixels = constants["TILE_W"] * constants["TILE_H"]
    registers = _registers(constants)
    kernel = warp_recon_packed.warp_recon_packed_kernel
    types = {"pred_ptr": dtype, "grad_ptr": dtype}
    return Case(name, kernel, constants, types, pixels // 128, registers, pixels)


def _warp_packed(name: str, dtype: str, changes: dict) -> Case:
    constants = {**WARP_PACKED, **changes, "EXACT": dtype in ("*fp32", "*u8")}
    if constants["HAS_COLOR"]:
        del constants["color_ptr"]
    registers = _registers(constants)
    kernel = warp_packed.warp_packed_kernel
    return Case(f"warp packed, {name}", kernel, constants, {"out_ptr": dtype}, 2, registers, 256)


PACKED_OPTIONS = {
    "dtype": ("*bf16", "*fp16", "*fp32"),
    "tiles": ((16, 16, 16, True), (32, 8, 8, True), (64, 4, 4, True), (32, 32, 32, True),
              (32, 8, 0, True), (32, 8, 0, False)),
    "texel": ((3, True), (3, False), (4, True)),
    "LOSS": ("mse", "l1", "smooth_l1"),
    "PADDING": ("zeros", "border", "reflection"),
    **dict.fromkeys(("ALIGN", "HAS_COLOR", "MASK_OUTSIDE", "GRAD", "REDUCE"), (False, True)),
}  # fmt: skip


def further_cases() -> Iterator[Case]:
    """Every two options of the packed kernel together, and the other tables' other ends."""
    for number, row in enumerate(_pairwise(PACKED_OPTIONS)):
        dtype, tiles, texel = (row.pop(name) for name in ("dtype", "tiles", "texel"))
        row |= dict(zip(("TILE_W", "TILE_H", "PATCH", "INTERLEAVED"), tiles, strict=True))
        row |= dict(zip(("TEXEL", "WHOLE_ROWS"), texel, strict=True))
        yield _packed(f"packed, pairs of options {number}", dtype, row)
    for dtype in ("*fp16", "*fp32"):
        for color in (False, True):
            changes = {"HAS_COLOR": color, "PADDING": "border", "WHOLE_ROWS": False}
            yield _warp_packed(f"{dtype}, border, color={color}", dtype, changes)
    for sigma in (1.0, 8.0, 16.0):
        config = BLUR | blur.launch_config(sigma) | {"LOSS": "none"}
        yield _case(f"blur images, {sigma}", blur.blur_fwd_kernel, config, {}, 256)
    for dtype in (torch.float16, torch.float32):
        kind = "*fp16" if dtype == torch.float16 else "*fp32"
        names = ("student_ptr", "teacher_ptr", "grad_ptr", "x_ptr", "s_ptr", "t_ptr", "z_ptr",
                 "every_ptr", "pooled_ptr")  # fmt: skip
        types = dict.fromkeys(names, kind) | {
            "high_ptr": "*fp32", "at_ptr": "*i32", "ids_ptr": "*i64", "positives_ptr": "*i64",
            "negative_ptr": "*fp32", "positive_ptr": "*fp32", "pull_ptr": "*fp32",
            "lse_ptr": "*fp32", "every_lse_ptr": "*fp32", "out_ptr": "*i64", "boxes_ptr": "*fp32",
            "student_boxes_ptr": "*fp32", "teacher_boxes_ptr": "*fp32", "turns_ptr": "*i32",
            "cosine_ptr": "*fp32",
        }  # fmt: skip
        for width, pairs in ((65536, 4), (300, 2), (20, 1)):
            config = DINO | {"PAIRS": pairs} | sinkhorn.row_blocks(width, dtype)
            kernel, values = dino.dino_kernel, config["BLOCK"]
            yield _case(f"dino {kind} {width}", kernel, config, types, values)
        for width in (16, 256, 512):
            config = similarities.launch_config(torch.empty(1, width, dtype=dtype))
            tile = config["BLOCK_M"] * config["BLOCK_G"]
            gradient = types | {"grad_ptr": "*fp32"}
            for kernel in (
                nt_xent.nt_xent_lse_kernel, nt_xent.nt_xent_grad_kernel, koleo.nearest_kernel
            ):  # fmt: skip
                name = f"{kernel.fn.__name__} {kind} {width}"
                yield _case(name, kernel, config, gradient, tile)
        config = {"FLIP": 1, **correspondence.launch_config(torch.empty(1, dtype=dtype))}
        kernel = correspondence.best_matches_kernel
        yield _case(f"best_matches {kind}", kernel, config, types, 32 * 64)
        for bins, cells in ((14, 32), (7, 37)):
            block = crop_align.block_of(cells)
            config = crop_align.launch_config(dtype, bins, cells)
            config |= {"MOST": -(-cells // bins), "WIDEN": False, "GRAD": True}
            config |= {"BLOCK_X": block, "BLOCK_XT": block}
            pixels = config["BLOCK_O"] * config["BLOCK_C"]
            name, kernel = f"crop_align {kind} {bins} {cells}", crop_align.crop_align_kernel
            yield _case(name, kernel, config, types, pixels)
    for channels, block in ((1, 128), (3, 128), (1, 512)):
        config = {**EVERY, "C": channels, "BLOCK": block, "HAS_COLOR": channels == 3, "SCALE": 1.0}
        config |= {} if channels == 3 else {"color_ptr": None}
        kernel = warp_recon_general.warp_recon_fwd_kernel
        types = {"pred_ptr": "*fp32", "grad_ptr": "*fp32", "image_ptr": "*fp32"}
        yield Case(f"general, float32, {channels}, {block}", kernel, config, types, 4, _any, block)


def _pairwise(options: dict[str, tuple]) -> Iterator[dict]:
    """A few rows in which any two values of two options meet."""
    draw = random.Random(0)

    def pairs(row: dict) -> set:
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
