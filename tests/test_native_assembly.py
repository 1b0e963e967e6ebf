"""What the compiler makes of the C kernels' loops: vectors stay in registers.

A processor forwards a store to a later load only if the one store holds all of what is loaded. A
vector put together on the stack from narrower stores stalls its load; in a sampling loop that was
four fifths of the time.
"""

import platform
import re
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from fastequi.kernels import toolchain

needs_compiler = pytest.mark.skipif(
    toolchain.compiler() is None or platform.machine() not in ("x86_64", "AMD64"),
    reason="reads the x86 assembly of a C compiler, of which there is none",
)

BYTES = {"BYTE": 1, "WORD": 2, "DWORD": 4, "QWORD": 8, "XMMWORD": 16, "YMMWORD": 32, "ZMMWORD": 64}
MEMORY = re.compile(
    r"\b(?P<size>[A-Z]*(?:BYTE|WORD)) PTR (?P<outer>-?\d+)?\[(?P<base>\w+)(?P<inner>[-+]\d+)?\]"
)


class Access(NamedTuple):
    """Which bytes of the stack, counted from a register, and whether they are written."""

    base: str
    first: int
    end: int
    writes: bool
    line: str


def functions(assembly: str) -> Iterator[tuple[str, list[str]]]:
    """Names and instructions, with the labels in between."""
    parts = re.split(r"^([A-Za-z_][\w.]*):.*$", assembly, flags=re.M)
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        lines = [line.split("#")[0].strip() for line in body.splitlines()]
        yield name, [line for line in lines if line and not re.match(r"\.(?!L\w+:)", line)]


def pointers(body: list[str]) -> list[dict[str, tuple[str, int]]]:
    """Before every instruction, which registers point into the stack: from what, how far."""
    known: dict[str, tuple[str, int]] = {"rsp": ("rsp", 0)}
    before = []
    for line in body:
        before.append(dict(known))
        operation, _, operands = line.partition("\t")
        target = operands.split(",")[0].strip()
        taken = re.search(r"(?:, )(-?\d+)?\[(\w+)([-+]\d+)?\]$", operands)
        if line == "mov\trbp, rsp":
            known["rbp"] = ("rbp", 0)
        elif operation == "lea" and taken and taken[2] in known:
            base, offset = known[taken[2]]
            known[target] = base, offset + int(taken[1] or 0) + int(taken[3] or 0)
        elif target != "rsp":
            known.pop(target, None)
    return before


def innermost_loops(body: list[str]) -> list[range]:
    """From the target of a jump backwards to the jump, where no other such lies within."""
    labels = {line[:-1]: place for place, line in enumerate(body) if line.endswith(":")}
    spans = set()
    for place, line in enumerate(body):
        jump = re.fullmatch(r"j(?!mp)\w+\s+(\S+)", line)  # a jmp back is of code laid aside
        if jump and labels.get(jump[1], place) < place:
            spans.add((labels[jump[1]], place))
    return [
        range(first, last + 1)
        for first, last in spans
        if not any(first <= a and b <= last for a, b in spans - {(first, last)})
    ]


def accesses(body: list[str], loop: range, known: list[dict[str, Any]]) -> Iterator[Access]:
    """Those of the stack in a loop, whose address has no index."""
    for place in loop:
        for found in MEMORY.finditer(body[place]):
            if found["base"] not in known[place]:
                continue
            base, first = known[place][found["base"]]
            first += int(found["outer"] or 0) + int(found["inner"] or 0)
            operation, _, operands = body[place].partition("\t")
            compares = re.match(r"v?(cmp|test|u?comis|ptest)", operation)
            writes = operands.startswith(found["size"]) and not compares
            yield Access(base, first, first + BYTES[found["size"]], writes, body[place])


def round_trips(body: list[str]) -> list[str]:
    """Vectors loaded from the stack in a loop of which a store before wrote a part alone."""
    known = pointers(body)
    slots = [list(accesses(body, loop, known)) for loop in innermost_loops(body)]
    return [
        f"{store.line} ... {load.line}".replace("\t", " ")
        for loop in slots
        for place, load in enumerate(loop)
        if not load.writes and load.end - load.first >= BYTES["XMMWORD"]
        for store in loop[:place]
        if store.writes and store.base == load.base
        if store.first < load.end and load.first < store.end
        if store.first > load.first or store.end < load.end
    ]


@pytest.mark.slow("v2", "v4")
@pytest.mark.slow("v3", every=3)
@needs_compiler
@pytest.mark.parametrize("isa", ["v2", "v3", "v4"])
@pytest.mark.parametrize(
    ("kernel", "hot"),
    [
        ("warp.c", "sample_run"),
        ("warp_adjoint.c", "add_run"),
        ("warp_recon.c", "sample_run"),
        ("rot90_batch.c", "turn_uint32_t"),
        ("dino.c", "loss_of"),
        ("sinkhorn.c", "balance_columns"),
        ("nt_xent.c", "contrast_group"),
        ("similarities.c", "best_of_group"),
        ("blur.c", "filter_strip"),
        ("crop_align.c", "pool"),
        ("correspondence.c", "grad_of_image"),
        ("gram.c", "differences"),
        ("short_attention.c", "product"),
        ("gelu.c", "run"),
    ],
)
def test_no_vector_goes_by_way_of_the_stack(kernel, hot, isa, monkeypatch):
    monkeypatch.delenv("FASTEQUI_CFLAGS", raising=False)  # the library as users have it
    command = toolchain.compiling(toolchain.compiler(), isa)
    source = str(toolchain.HERE / kernel)
    assembly = subprocess.run(
        [*command, "-masm=intel", "-S", source, "-o", "-"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    bodies = list(functions(assembly))
    assert sum(len(innermost_loops(body)) for name, body in bodies if name.startswith(hot)) >= 2
    trips = {name: round_trips(body) for name, body in bodies}
    assert not {name: found[:3] for name, found in trips.items() if found}


def test_a_round_trip_is_seen():
    """As GCC 12 copied a pair of texels for processors with AVX2."""
    lines = [
        "sample:", "\tlea\tr10, -64[rsp]", ".L3:",
        "\tvmovdqu\txmm3, XMMWORD PTR [rax]", "\tvmovdqu\txmm4, XMMWORD PTR 16[rax]",
        "\tvmovdqa\tXMMWORD PTR [r10], xmm3", "\tvmovdqa\tXMMWORD PTR 16[r10], xmm4",
        "\tvsubps\tymm1, ymm0, YMMWORD PTR -64[rsp]",
        "\tvmovaps\tYMMWORD PTR [rsp+64], ymm1", "\tvmovaps\tymm2, YMMWORD PTR [rsp+64]",
        "\tjne\t.L3", "\tret",
    ]  # fmt: skip
    ((name, body),) = functions("\n".join(lines))
    assert name == "sample"
    assert round_trips(body) == [
        "vmovdqa XMMWORD PTR [r10], xmm3 ... vsubps ymm1, ymm0, YMMWORD PTR -64[rsp]",
        "vmovdqa XMMWORD PTR 16[r10], xmm4 ... vsubps ymm1, ymm0, YMMWORD PTR -64[rsp]",
    ]
