import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastequi.models.heads import DINOHead, Expander, SplitHead


def test_split_head_is_one_linear_layer_cut_in_two():
    head = SplitHead(6, 10, 4)
    x = torch.randn(2, 3, 6)
    z_inv, z_equi = head(x)
    assert torch.equal(torch.cat([z_inv, z_equi], -1), head.proj(x))
    assert z_inv.shape == (2, 3, 6)
    assert z_equi.shape == (2, 3, 4)
    assert SplitHead(6, 10, 0)(x)[1].shape == (2, 3, 0)
    with pytest.raises(ValueError, match="equi_dim"):
        SplitHead(6, 10, 11)


def test_expander_is_vicregs():
    layers = list(Expander(4, (8, 8, 6)))
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in layers] == kinds
    assert layers[-1].bias is None
    assert Expander(4, (6,))(torch.randn(5, 4)).shape == (5, 6)
    with pytest.raises(ValueError, match="dims"):
        Expander(4, ())


def test_head_is_the_official_one():
    """facebookresearch/dino, DINOHead: MLP, unit length, weight-normalised layer with gains 1."""
    torch.manual_seed(0)
    head = DINOHead(6, 10, 12, 4)
    x = torch.randn(5, 6)
    last = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 10, bias=False))
    last.parametrizations.weight.original0.data.fill_(1)
    last.parametrizations.weight.original1.data.copy_(head.last.weight)
    expected = last(F.normalize(head.bottleneck(head.mlp(x)), dim=-1))
    torch.testing.assert_close(head(x), expected)
    with pytest.raises(ValueError, match="split"):
        DINOHead(6, 10, 12, 4, 2, "middle")
    with pytest.raises(ValueError, match="equi_dim"):
        DINOHead(6, 10, 12, 4, 12, "hidden")
