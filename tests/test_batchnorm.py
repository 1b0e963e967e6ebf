"""The BatchNorm that several processes share, here alone: it is the one that it replaces."""

import copy

import pytest
import torch
from torch import nn

from fastequi.models.batchnorm import SharedBatchNorm


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: the activation is a part of it."""

    def __init__(self, channels, act):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Unknown(nn.BatchNorm2d):
    def forward(self, x):
        return -super().forward(x)


@pytest.mark.parametrize("make", [nn.BatchNorm2d, lambda n: Activated(n, nn.SiLU())])
def test_a_shared_batchnorm_computes_what_it_replaces(make):
    torch.manual_seed(0)
    own = make(3)
    nn.init.uniform_(own.weight, 0.5, 2.0)
    nn.init.normal_(own.bias)
    shared = SharedBatchNorm(copy.deepcopy(own), group=None)
    assert shared.state_dict().keys() == own.state_dict().keys()
    x = 2 * torch.randn(4, 3, 5, 5) + 1
    for module in (own, shared):
        module.given = x.clone().requires_grad_()
        module.out = module.train()(module.given)
        module.out.square().sum().backward()
    torch.testing.assert_close(shared.out, own.out)
    torch.testing.assert_close(shared.given.grad, own.given.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shared.weight.grad, own.weight.grad)
    for name, value in own.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value)
    torch.testing.assert_close(shared.eval()(x), own.eval()(x))


def test_a_batchnorm_that_computes_something_else_is_refused():
    with pytest.raises(ValueError, match=r"several processes: .*got tests.test_batchnorm.Unknown"):
        SharedBatchNorm(Unknown(3), group=None)
    with pytest.raises(ValueError, match="own: expected momentum, weights and running statistics"):
        SharedBatchNorm(nn.BatchNorm2d(3, momentum=None), group=None)
