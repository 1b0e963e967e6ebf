"""Compiles the Triton kernels for GPUs that are not there and reads their machine code.

Run as a program, since its caller may run Triton's interpreter: `python sass.py FOLDER` prints
JSON.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastequi.kernels import (
    blur,
    correspondence,
    crop_align,
    dino,
    koleo,
    nt_xent,
    pixel_loss,
    rot90_batch,
    sinkhorn,
    vicreg,
    warp,
    warp_recon_general,
    warp_recon_texels,
    warp_texels,
)

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
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
TEXELS = {
    "TEXEL": 3, "WHOLE_ROWS": True, "EXACT": False, "PATCH": 16, "TILE_W": 16, "TILE_H": 16,
    "INTERLEAVED": True, "LOSS": "mse", "PADDING": "zeros", "ALIGN": False, "HAS_COLOR": False,
    "MASK_OUTSIDE": False, "GRAD": True, "REDUCE": True, "color_ptr": None, "counts_ptr": None,
    "count_ptr": None,
}  # fmt: skip
TEXELS_EVERY = {
    **{name: value for name, value in TEXELS.items() if value is not None}, "EXACT": True,
    "HAS_COLOR": True, "MASK_OUTSIDE": True, "PADDING": "reflection", "LOSS": "smooth_l1",
    "PATCH": 0, "TILE_W": 32, "TILE_H": 8,
}  # fmt: skip
WARP = {
    "C": 3, "PADDING": "zeros", "ALIGN": False, "HAS_COLOR": False, "HAS_NORM": True,
    "SCALE": 1 / 255, "ROUND": False, "BLOCK": 512, "color_ptr": None,
}  # fmt: skip
WARP_TEXELS = {
    "TEXEL": 3, "WHOLE_ROWS": True, "EXACT": False, "TILE_W": 32, "TILE_H": 8, "PADDING": "zeros",
    "ALIGN": False, "HAS_COLOR": False, "ROUND": False, "color_ptr": None,
}  # fmt: skip
BLUR = {
    "C": 3, "PATCH": 16, "LOSS": "mse", "HAS_NORM": True, "SCALE": 1 / 255, "GRAD": True, "R": 8,
    "TILE": 16, "SPAN": 32,
}  # fmt: skip


NT_XENT = {
    "BLOCK_M": 64, "BLOCK_G": 64, "BLOCK_D": 128, "PRECISION": "tf32", "WIDEN": False
}  # fmt: skip
DINO = {
    "PAIRS": 2, "HAS_ROW": True, "HAS_COLUMN": True, "HAS_LSE": False, "lse_ptr": None,
    "GRAD": True, "FULL": True, "BLOCK": sinkhorn._BLOCK, "VEC": sinkhorn._VEC,
}  # fmt: skip


def cases() -> Iterator[tuple]:
    """(name, kernel, constants, types that differ, warps, registers allowed, pixels of a turn)."""
    general = warp_recon_general._warp_recon_fwd_kernel
    texels = warp_recon_texels._warp_recon_texels_kernel
    yield "general", general, RECON, {}, 4, None, 512
    yield "general, everything on", general, EVERY, {}, 4, None, 512
    yield "warp", warp._warp_fwd_kernel, WARP, {}, 4, None, 512
    yield "blur", blur._blur_fwd_kernel, BLUR, {}, 4, None, 256
    yield "dino", dino._dino_kernel, DINO, {}, sinkhorn._WARPS, None, sinkhorn._BLOCK
    ibot = DINO | {"PAIRS": 1, "HAS_ROW": False, "row_ptr": None}
    yield "ibot", dino._dino_kernel, ibot, {}, sinkhorn._WARPS, None, sinkhorn._BLOCK
    ragged = DINO | {"FULL": False}
    yield "dino, ragged", dino._dino_kernel, ragged, {}, sinkhorn._WARPS, None, sinkhorn._BLOCK
    known = {name: value for name, value in DINO.items() if name != "lse_ptr"} | {"HAS_LSE": True}
    types = {"lse_ptr": "*fp32"}
    yield "dino, columns", dino._dino_kernel, known, types, sinkhorn._WARPS, None, sinkhorn._BLOCK
    row_lse = {"HAS_COLUMN": True, "FULL": True, "BLOCK": sinkhorn._BLOCK, "VEC": sinkhorn._VEC}
    yield "row_lse", sinkhorn._row_lse_kernel, row_lse, {}, sinkhorn._WARPS, None, sinkhorn._BLOCK
    column_lse = {"ROWS": 16, "BLOCK": 128}
    yield "column_lse", sinkhorn._column_lse_kernel, column_lse, {}, 4, None, 16 * 128
    types = {
        "s_ptr": "*bf16", "t_ptr": "*bf16", "high_ptr": "*fp32", "at_ptr": "*i32",
        "forth_ptr": "*i32", "back_ptr": "*i32", "forth_weight_ptr": "*fp32",
        "back_weight_ptr": "*fp32",
    }  # fmt: skip
    tiles = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_C": 64, "PRECISION": "tf32", "WIDEN": False}
    kernel = correspondence._best_matches_kernel
    yield "best_matches_kernel", kernel, {"FLIP": 0, **tiles}, types, 4, None, 32 * 64
    yield "matched_kernel", correspondence._matched_kernel, tiles, types, 4, None, 32 * 64
    types = {
        "student_boxes_ptr": "*fp32", "teacher_boxes_ptr": "*fp32", "turns_ptr": "*i32",
        "cosine_ptr": "*fp32", "pooled_ptr": "*bf16", "boxes_ptr": "*fp32",
    }  # fmt: skip
    for bins, cells in ((10, 14), (4, 14)):  # global and local crops' pairs
        sizes = crop_align._sizes(torch.bfloat16, bins)
        warps = sizes.pop("num_warps")
        sizes |= {"MOST": -(-cells // bins), "WIDEN": False, "BLOCK_X": 16}
        pixels = sizes["BLOCK_O"] * sizes["BLOCK_C"]
        constants = {**sizes, "BLOCK_XT": 16, "GRAD": True}
        kernel = crop_align._crop_align_kernel
        yield f"crop_align {bins}", kernel, constants, types, warps, None, pixels
        yield f"spread {bins}", crop_align._spread_kernel, sizes, types, warps, None, pixels
    types = {"turns_ptr": "*i32", "means_ptr": "*fp32", "gains_ptr": "*fp32"}
    kernel, tile = rot90_batch._rot90_batch_kernel, rot90_batch._TILE
    dense = {"stride_ix": 3, "stride_ic": 1, "stride_ox": 1}
    constants = {"C": 3, "ALL": True, "TILE": tile, "turns_ptr": None, **dense}
    yield "rot90_batch", kernel, constants, types, rot90_batch._WARPS, None, 4 * tile * tile
    constants = {"C": 3, "ALL": False, "TILE": tile, **dense, "stride_oc": 1, "stride_ox": 3}
    yield "rot90_batch, one, last", kernel, constants, types, rot90_batch._WARPS, None, tile * tile
    constants = {"GRAD": True, "ROWS": vicreg._ROWS, "BLOCK": vicreg._BLOCK}
    types = {f"{name}_ptr": "*fp32" for name in ("z1", "z2", "centred", "grad", "sums")}
    kernel, pixels = vicreg._vicreg_columns_kernel, vicreg._ROWS * vicreg._BLOCK
    yield "vicreg", kernel, constants, types, vicreg._WARPS, None, pixels
    for size in ("i32", "i64"):
        constants, types = {"BLOCK": 1024}, {"factor_ptr": "*fp32", "n": size}
        yield f"rescale {size}", pixel_loss._rescale_kernel, constants, types, 4, None, 1024
    types = {"z_ptr": "*bf16", "every_ptr": "*bf16", "ids_ptr": "*i64", "positives_ptr": "*i64",
             "lse_ptr": "*fp32", "every_lse_ptr": "*fp32", "grad_ptr": "*fp32"}  # fmt: skip
    for width, warps in ((128, 4), (256, 8)):
        constants = {**NT_XENT, "BLOCK_D": width}
        yield f"nt_xent {width}", nt_xent._nt_xent_lse_kernel, constants, types, warps, None, 4096
        kernel = nt_xent._nt_xent_grad_kernel
        yield f"nt_xent gradient {width}", kernel, constants, types, warps, None, 4096
    constants = {**NT_XENT, "BLOCK_M": 32, "BLOCK_G": 32, "BLOCK_D": 512}
    kernel = nt_xent._nt_xent_grad_kernel
    yield "nt_xent gradient 512", kernel, constants, types, 8, None, 1024
    types = {**types, "out_ptr": "*i64"}
    yield "nearest", koleo._nearest_kernel, NT_XENT, types, 4, None, 4096
    for padding in ("border", "zeros"):
        for align in (False, True):
            name = f"general, {padding}, align_corners={align}"
            options = {**EVERY, "PADDING": padding, "ALIGN": align, "LOSS": "l1"}
            yield name, general, options, {}, 4, None, 512
    allowed = texels.registers(exact=False, color=False)
    for name, changes in (
        ("rgb", {}),
        ("rgbx", {"TEXEL": 4}),
        ("rgb, rows of any bytes", {"WHOLE_ROWS": False}),
        ("rgb, patches of 8", {"PATCH": 8, "TILE_W": 32, "TILE_H": 8}),
        ("rgb, images", {"PATCH": 0, "TILE_W": 32, "TILE_H": 8, "INTERLEAVED": False}),
        ("rgb, forward", {"GRAD": False}),
        ("rgb, one step", {"K": 1, "NB": 1, "ROWS": 1}),  # ones become constants
    ):
        yield f"texels, {name}", texels, {**TEXELS, **changes}, {}, 2, allowed, 256
    allowed = texels.registers(exact=True, color=False)
    full = {"pred_ptr": "*fp32", "grad_ptr": "*fp32"}
    yield "texels, rgb, float32", texels, {**TEXELS, "EXACT": True}, full, 2, allowed, 256
    yield "texels, everything on", texels, TEXELS_EVERY, full, 2, allowed, 256
    planar = {**TEXELS_EVERY, "INTERLEAVED": False}
    bytewise, kernel = {"out_ptr": "*u8"}, warp_texels._warp_texels_kernel
    for name, changes, types in (
        ("rgb", {}, {}),
        ("rgbx", {"TEXEL": 4}, {}),
        ("rgb to rgb", {"EXACT": True, "ROUND": True, "PADDING": "reflection"}, bytewise),
    ):
        constants = {**WARP_TEXELS, **changes}
        yield f"warp texels, {name}", kernel, constants, types, 2, warp_texels._REGISTERS, 256
    yield "texels, everything on, images", texels, planar, full, 2, allowed, 256


def build(
    kernel, constants: dict, types: dict, warps: int, registers: int | None, arch: int
) -> bytes:
    pointers = {**POINTERS, **types}
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        signature[name] = "fp32" if name in FLOATS else pointers.get(name, "i32")
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers or name in EVEN:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": warps, **({"maxnreg": registers} if registers else {})}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm["cubin"]


def disassembled(cubin: Path) -> tuple[list[str], dict[str, int]]:
    """Instructions in order, and where each label points."""
    run = subprocess.run([TOOLS / "nvdisasm", "-c", cubin], capture_output=True, text=True)
    code, labels = [], {}
    for line in run.stdout.splitlines():
        if found := re.match(r"(\.L_\w+):", line):
            labels[found[1]] = len(code)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*)", line):
            code.append(found[1])
    return code, labels


def turn(code: Sequence[str], labels: dict[str, int]) -> int:
    """Instructions of the shortest way once around the largest inner loop."""
    jumps = {}
    for i, line in enumerate(code):
        if found := re.search(r"BRA.*`\((\.L_\w+)\)", line):
            jumps[i] = labels[found[1]]
    loops = [(i - to + 1, to, i) for i, to in jumps.items() if to < i]
    inner = [a for a in loops if not any(a[1] <= b[1] and b[2] <= a[2] and a != b for b in loops)]
    _, head, end = max(inner)
    sys.setrecursionlimit(10_000)

    @cache
    def shortest(i: int) -> float:
        if i == end:
            return 1
        if not head <= i < end:
            return float("inf")
        ways = []
        if i in jumps:
            ways.append(1 if jumps[i] == head else shortest(jumps[i]) if jumps[i] > i else 1e9)
        if i not in jumps or re.search(r"^@|BRA\S* !?UP\d", code[i]):
            ways.append(shortest(i + 1))
        return 1 + min(ways)

    return int(shortest(head))


def measure(cubin: Path, warps: int, pixels: int, loops: bool) -> dict:
    run = subprocess.run([TOOLS / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True)
    usage = run.stdout + run.stderr
    code, labels = disassembled(cubin)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "local": sum(bool(re.search(r"\b(?:LDL|STL)\b", line)) for line in code),
        "instructions": len(code),
        "per_pixel": (turn(code, labels) if loops else len(code)) * warps * 32 / pixels,
    }


def main(folder: Path) -> None:
    rows = {}
    for name, kernel, constants, types, warps, registers, pixels in cases():
        for arch in (80, 90, 100) if name in ("general", "warp", "blur", "texels, rgb") else (90,):
            cubin = folder / "kernel.cubin"
            cubin.write_bytes(build(kernel, constants, types, warps, registers, arch))
            rows[f"{name} sm_{arch}"] = measure(cubin, warps, pixels, "texels" in name)
    print(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
