"""Compiles the Triton kernels for GPUs that are not there and reads their machine code.

Run as a program, since its caller may run Triton's interpreter: `python sass.py FOLDER [all]`
prints JSON.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import triton
from launches import EVEN, FLOATS, POINTERS, Case, cases, further_cases
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def build(case: Case, arch: int) -> bytes:
    pointers = {**POINTERS, **case.types}
    signature, attributes = {}, {}
    for place, name in enumerate(case.kernel.arg_names):
        signature[name] = "fp32" if name in FLOATS else pointers.get(name, "i32")
        if name in case.constants:
            signature[name] = "constexpr"
        elif name in pointers or name in EVEN:
            attributes[(place,)] = [["tt.divisibility", 16]]
    taken = {name: case.constants[name] for name in case.kernel.arg_names if name in case.constants}
    source = ASTSource(case.kernel, signature, taken, attributes)
    options = {"num_warps": case.warps}
    if registers := case.registers(arch):
        options["maxnreg"] = registers
    if case.stages:
        options["num_stages"] = case.stages
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


def main(folder: Path, every: bool) -> None:
    rows = {}
    for case in [*cases(), *(further_cases() if every else ())]:
        three = every or case.name in ("general", "warp", "blur", "packed, rgb")
        for arch in (80, 90, 100) if three else (90,):
            cubin = folder / "kernel.cubin"
            cubin.write_bytes(build(case, arch))
            loops = "packed" in case.name
            rows[f"{case.name} sm_{arch}"] = measure(cubin, case.warps, case.pixels, loops)
    print(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] == ["all"])
