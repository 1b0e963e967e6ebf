"""Kernels run under Triton's interpreter where there is no GPU; that must be said before import."""

import os
from collections import Counter

import pytest
import torch

try:
    from hypothesis import settings
except ImportError:  # a machine with a GPU, most of whose tests do without
    pass
else:  # the same examples in every run: one that hangs on rounding would fail another's change
    settings.register_profile("same", derandomize=True, database=None)

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=["torch", "native", "triton"])
def backend(request):
    """Runs a test on the eager PyTorch path, the C kernels and the Triton kernels."""
    from fastequi.kernels import backend

    if request.param == "native" and torch.cuda.is_available():
        pytest.skip("the C kernels are tested where there is no GPU")

    with backend.force(request.param):
        yield request.param


@pytest.fixture
def poisoned():
    """Fresh memory holds NaN, so that whatever is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def only_packed(monkeypatch):
    """Triton, and no other kernel of the path loss than the one for packed images."""
    from fastequi.kernels import backend, warp_recon

    def general(*_):
        raise AssertionError("the general kernel ran")

    monkeypatch.setattr(warp_recon, "warp_recon_general", general)
    with backend.force("triton"):
        yield


@pytest.fixture(scope="session")
def curves_of_one(tmp_path_factory):
    """Folders of runs of one process: by SGD, and by AdamW and Muon at a small rate."""
    from tests.support.runs import ALONE, MUON_ALONE, SGD, run_once

    kinds = {"sgd": SGD, "adamw": ALONE, "muon": MUON_ALONE}
    return {
        name: run_once(tmp_path_factory, name, *options, "--max-steps", 8)
        for name, options in kinds.items()
    }


@pytest.fixture(scope="session")
def uninterrupted_by_two(tmp_path_factory):
    """The folder of a run of two processes and 30 steps."""
    from tests.support.runs import run_once

    return run_once(tmp_path_factory, "uninterrupted_by_two", "--max-steps", 30, processes=2)


def _slow(items):
    """Those marked slow; or slow("triton", "l1-zeros"), then of items whose id has "triton", or
    both "l1" and "zeros"; or slow(..., every=3), of such items all but a third, spread over their
    parameters. The last two where there is no GPU.
    """
    met = Counter()  # of the items of a function that have such words
    for item in items:
        for marker in item.iter_markers("slow"):  # keywords hold the folders' names too
            if not (marker.args or marker.kwargs):
                yield item
            elif not torch.cuda.is_available():
                known = set(item.callspec.id.split("-"))
                named = any(known.issuperset(words.split("-")) for words in marker.args)
                if named or not marker.args:
                    number = met[item.function]
                    met[item.function] += 1
                    every = marker.kwargs.get("every")
                    if every is None or number * _GOLDEN % 1 >= 1 / every:
                        yield item


_GOLDEN = 0.6180339887  # parts of its multiples lie evenly, whatever the numbers of parameters


def pytest_collection_modifyitems(config, items):
    if not config.getoption("-m"):
        skip = pytest.mark.skip(reason="slow: run with -m slow")
        for item in _slow(items):
            item.add_marker(skip)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)
