"""Networks of other packages, with weights drawn wide enough that every part of them matters."""

import pytest
import torch

from fastequi.weights.reader import fill, load_weights


def package(name):
    """The package, or the test is skipped: tests that need one are marked `peers`."""
    try:
        return __import__(name)
    except Exception as error:  # a broken installation raises more than ImportError
        pytest.skip(f"{name} cannot be imported: {error}")


def drawn(network):
    """The network in eval mode, all of its weights changed at random."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, param in network.named_parameters():
            noise = torch.randn(param.shape, generator=generator)
            inputs = param[0].numel() if "weight" in name and param.ndim > 1 else 50
            # queries and keys of a size at which the softmax is not flat
            wide = any(word in name for word in ("qkv", "query", "key", "q_proj", "k_proj"))
            param.add_(noise * ((1.0 if wide else 0.4) / inputs**0.5))
    return network.eval()


def read(path, *args):
    """Our ViT from a file or folder, and what was read."""
    weights = load_weights(path, *args)
    network = weights.make().eval()
    fill(network, weights)
    return network, weights


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
