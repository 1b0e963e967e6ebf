"""The kernels as machine code, without a GPU: compiled for three architectures, no spills.

A child process compiles, since this one may run Triton's interpreter. The counts are printed
(pytest -s) and held under ceilings that only go down.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parent.parent

COMPILE = r"""
import json, re, subprocess, sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fastequi.kernels import blur, warp, warp_recon

tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

def compile(kernel, pointers, constants, options, arch):
    # pointers are 16-byte aligned and sizes multiples of 16 where real calls have them so
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = pointers[name]
        else:
            signature[name] = "fp32" if name == "max_sigma" else "i32"
    attrs = {(kernel.arg_names.index(n),): [["tt.divisibility", 16]] for n in pointers
             if n not in constants}
    source = ASTSource(kernel, signature, constants, attrs)
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    cubin = Path(sys.argv[1]) / f"{kernel.__name__}.cubin"
    cubin.write_bytes(built.asm["cubin"])
    usage = subprocess.run([tools / "cuobjdump", "-res-usage", cubin], capture_output=True,
                           text=True, check=True)
    text = usage.stdout + usage.stderr
    sass = subprocess.run([tools / "nvdisasm", "-c", cubin], capture_output=True, text=True)
    count = len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", sass.stdout, re.M))
    local = re.findall(r"\b(?:LDL|STL)\b", sass.stdout)
    return {"registers": int(re.search(r"REG:(\d+)", text)[1]),
            "stack": int(re.search(r"STACK:(\d+)", text)[1]),
            "local": len(local), "instructions": count}

recon_ptrs = {"pred_ptr": "*bf16", "image_ptr": "*u8", "theta_ptr": "*fp32", "mean_ptr": "*fp32",
              "std_ptr": "*fp32", "total_ptr": "*fp32", "grad_ptr": "*bf16", "color_ptr": "*fp32",
              "count_ptr": "*fp32", "dtheta_ptr": "*fp32"}
recon = {"C": 3, "PATCH": 16, "LOSS": "mse", "PADDING": "zeros", "ALIGN": False,
         "HAS_COLOR": False, "HAS_NORM": True, "SCALE": 1 / 255, "MASK_OUTSIDE": False,
         "PRED_GRAD": True, "THETA_GRAD": False, "BLOCK": 512}
none = {"color_ptr": None, "count_ptr": None, "dtheta_ptr": None}
every = {**recon, "HAS_COLOR": True, "MASK_OUTSIDE": True, "THETA_GRAD": True, "PATCH": 0,
         "PADDING": "reflection", "LOSS": "smooth_l1"}
warp_ptrs = {"image_ptr": "*u8", "theta_ptr": "*fp32", "mean_ptr": "*fp32", "std_ptr": "*fp32",
             "out_ptr": "*bf16", "color_ptr": "*fp32"}
warped = {"C": 3, "PADDING": "zeros", "ALIGN": False, "HAS_COLOR": False, "HAS_NORM": True,
          "SCALE": 1 / 255, "ROUND": False, "BLOCK": 512, "color_ptr": None}
blur_ptrs = {"pred_ptr": "*bf16", "image_ptr": "*u8", "sigma_ptr": "*fp32", "mean_ptr": "*fp32",
             "std_ptr": "*fp32", "out_ptr": "*bf16", "total_ptr": "*fp32"}
blurred = {"C": 3, "PATCH": 16, "LOSS": "mse", "HAS_NORM": True, "SCALE": 1 / 255, "GRAD": True,
           "R": 8, "TILE": 16, "SPAN": 32}
cases = {
    "warp_recon": (warp_recon._warp_recon_fwd_kernel, recon_ptrs, {**recon, **none}, 4, 512),
    "warp_recon, everything on": (warp_recon._warp_recon_fwd_kernel, recon_ptrs, every, 4, 512),
    "warp": (warp._warp_fwd_kernel, warp_ptrs, warped, 4, 512),
    "blur_recon": (blur._blur_fwd_kernel, blur_ptrs, blurred, 4, 256),
}
for padding in ("zeros", "border", "reflection"):
    for align in (False, True):
        options = {"PADDING": padding, "ALIGN": align, "PATCH": 0, "LOSS": "l1"}
        constants = {**every, **options}
        name = f"warp_recon, {padding}, align_corners={align}"
        cases[name] = (warp_recon._warp_recon_fwd_kernel, recon_ptrs, constants, 4, 512)
out = {}
for name, (kernel, pointers, constants, warps, pixels) in cases.items():
    for arch in (80, 90, 100) if "align_corners" not in name else (90,):
        row = compile(kernel, pointers, constants, {"num_warps": warps}, arch)
        row["per_pixel"] = row["instructions"] * warps * 32 / pixels
        out[f"{name} sm_{arch}"] = row
print(json.dumps(out))
"""

# instructions per pixel on sm_90 (all channels, gradient included): they only go down
CEILINGS = {
    "warp_recon": 314,
    "warp_recon, everything on": 514,
    "warp": 266,
    "blur_recon": 828,
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cubins")
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(folder)}
    run = subprocess.run(
        [sys.executable, "-c", COMPILE, folder],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    rows = json.loads(run.stdout.splitlines()[-1])
    for name, row in rows.items():
        print(name, row)
    return rows


def test_no_kernel_spills_on_any_architecture(compiled):
    assert {name.rsplit("_", 1)[1] for name in compiled} == {"80", "90", "100"}
    for name, row in compiled.items():
        assert row["instructions"] > 50, name  # the disassembly was really read
        assert row["local"] == 0, f"{name} spills: {row}"
        assert row["stack"] == 0, f"{name} has a stack frame: {row}"
        assert row["registers"] <= 255, name


@pytest.mark.parametrize("name", CEILINGS)
def test_instructions_per_pixel_only_go_down(compiled, name):
    assert compiled[f"{name} sm_90"]["per_pixel"] <= CEILINGS[name]
