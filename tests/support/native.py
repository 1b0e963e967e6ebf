"""What all tests of the C kernels need."""

from contextlib import contextmanager

import pytest
import torch

from fastequi.kernels import native, toolchain

# a module's pytestmark
NEEDS_C = [
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="the C kernels are tested where there is no GPU"
    ),
    pytest.mark.skipif(
        native.obstacle() is not None, reason=f"C kernels: {native.obstacle()}"
    ),
]  # fmt: skip


@contextmanager
def instruction_set(isa, monkeypatch):
    """The kernels compiled for it run; skips the test where the processor cannot."""
    library, _, best = native.load()
    order = list(toolchain.instruction_sets())
    if order.index(isa) > order.index(best):
        pytest.skip(f"this processor runs {best} at most")
    with monkeypatch.context() as patch:
        patch.setattr(native, "load", lambda: (library, None, isa))
        yield


def expect_the_same_bits_of_any_threads(call):
    """Of tensors that `call` returns, however small they are."""
    before, grain, results = torch.get_num_threads(), native._GRAIN, []
    native._GRAIN = 1
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            results.append(call())
    finally:
        torch.set_num_threads(before)
        native._GRAIN = grain
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
