"""Compiles the Triton kernels for GPUs that are not there and counts their machine code.

Run as a program, since its caller may run Triton's interpreter: `python -m tests.support.sass
FOLDER [all]` prints JSON, {"name sm_90": figures of `Counts`}. Without `all`: the launches of
`launches.py` that are not slow, for sm_90; with it all of them for every architecture.
"""

import json
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.cubins import disassembly, usage
from tests.support.launches import EVEN, FLOATS, POINTERS, Case, cases

ARCHITECTURES = 80, 90, 100


class Disassembly(NamedTuple):
    code: list[str]  # instructions in order
    labels: dict[str, int]  # the instruction that each label points to


class Loop(NamedTuple):
    length: int
    first: int
    last: int

    def holds(self, other: "Loop") -> bool:
        return self.first <= other.first and other.last <= self.last and self != other


class Counts(NamedTuple):
    registers: int  # of a thread
    stack: int  # bytes
    local: int  # loads and stores of spilled registers
    instructions: int
    per_pixel: float  # instructions of one turn of the inner loop where there is one


def build(case: Case, arch: int) -> bytes:
    """The launch's cubin."""
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


def disassembled(cubin: Path) -> Disassembly:
    code, labels = [], {}
    for line in disassembly(cubin).splitlines():
        if found := re.match(r"(\.L_\w+):", line):
            labels[found[1]] = len(code)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*)", line):
            code.append(found[1])
    return Disassembly(code, labels)


def turn(code: Sequence[str], labels: dict[str, int]) -> int:
    """Instructions of the shortest way once around the largest inner loop."""
    jumps = {}
    for i, line in enumerate(code):
        if found := re.search(r"BRA.*`\((\.L_\w+)\)", line):
            jumps[i] = labels[found[1]]
    loops = [Loop(i - to + 1, to, i) for i, to in jumps.items() if to < i]
    _, head, end = max(one for one in loops if not any(one.holds(other) for other in loops))
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


def measure(cubin: Path, case: Case) -> Counts:
    code, labels = disassembled(cubin)
    counted = turn(code, labels) if case.loops else len(code)
    return Counts(
        *usage(cubin),
        instructions=len(code),
        per_pixel=counted * case.warps * 32 / case.pixels,
    )


def main(folder: Path, names: list[str]) -> None:
    """Counts of the launches with these names for sm_90; of "all" for every architecture."""
    rows = {}
    every = names == ["all"]
    for case in cases():
        if case.name not in names and not every:
            continue
        for arch in ARCHITECTURES if every else (90,):
            cubin = folder / "kernel.cubin"
            cubin.write_bytes(build(case, arch))
            rows[f"{case.name} sm_{arch}"] = measure(cubin, case)._asdict()
    print(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
