"""The CPU cases under pytest-benchmark, small: `pytest bench`."""

import pytest

from bench.opbench import Unavailable, all_cases

SMALL = {"B": 2, "K": 2, "size": 64, "N": 37, "D": 8}
CASES = [case for case in all_cases() if case.device == "cpu"]
CALLS = [
    pytest.param(case, mode, name, id=f"{case.name}-{mode}-{name}")
    for case in CASES
    for mode in ("fwd", "fwdbwd")
    for name in case.providers
]


@pytest.mark.parametrize(("case", "mode", "name"), CALLS)
def test_bench(benchmark, case, mode, name):
    params = {key: SMALL.get(key, value) for key, value in case.sweep[0].items()}
    inputs = case.inputs(**params)
    try:
        call = case.providers[name].make(inputs, mode)
        call()
    except Unavailable as missing:
        pytest.skip(str(missing))
    benchmark.group = f"{case.name} {mode}"
    benchmark(call)
