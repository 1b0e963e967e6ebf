"""What a call computes and allocates."""

import torch


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

    with Seen() as seen:
        run()
    return seen.entries
