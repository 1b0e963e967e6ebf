"""The CPU cases under pytest-benchmark, small: `pytest bench`. A wrong answer fails."""

import functools

import pytest

from bench.opbench import Unavailable, checked
from bench.registry import all_cases

SMALL = {"B": 2, "K": 2, "size": 64, "N": 37, "D": 8}
CASES = {case.name: case for case in all_cases() if case.device == "cpu"}
CALLS = [
    pytest.param(name, mode, provider, id=f"{name}-{mode}-{provider}")
    for name, case in CASES.items()
    for mode in ("fwd", "fwdbwd")
    for provider in case.providers
]


@functools.cache
def prepared(name, mode):
    case = CASES[name]
    inputs = case.inputs(**{key: SMALL.get(key, value) for key, value in case.sweep[0].items()})
    return inputs, case.answer(inputs, mode)


@pytest.mark.parametrize(("name", "mode", "provider"), CALLS)
def test_bench(benchmark, name, mode, provider):
    inputs, answer = prepared(name, mode)
    try:
        call = checked(CASES[name].providers[provider], inputs, mode, answer)
    except Unavailable as missing:
        pytest.skip(str(missing))
    benchmark.group = f"{name} {mode}"
    benchmark(call)
