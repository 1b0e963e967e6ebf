"""What a call computes and allocates, inside our operators too."""

import contextlib
from unittest import mock

import torch

from fastequi.kernels import autograd


@contextlib.contextmanager
def watched(mode):
    """A dispatch mode that sees what eager code would run: our kernels' own tensors.

    Under a mode our operators run as one call each, so that what the kernels write is seen.
    """
    with mock.patch.object(autograd, "needs_operator", return_value=False), mode:
        yield mode


def sizes_of(run):
    """(operator, elements) of everything that a call computes or allocates."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        entries: list[tuple[str, int]] = []  # noqa: RUF012

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = out if isinstance(out, tuple | list) else [out]
            total = sum(t.numel() for t in tensors if isinstance(t, torch.Tensor))
            self.entries.append((str(func), total))
            return out

    with watched(Seen()) as seen:
        run()
    return seen.entries
