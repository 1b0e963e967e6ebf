import copy

import pytest
import torch
from torch import nn

from fastequi.optim import WeightAverage, adamw, param_groups, warmup_cosine


def test_warmup_cosine_has_its_known_values():
    schedule = [warmup_cosine(p, 2.0, 0.5, 0.2) for p in (0, 0.1, 0.2, 0.6, 1, 7)]
    assert schedule == pytest.approx([0, 1, 2, 1.25, 0.5, 0.5])
    assert warmup_cosine(0, 1.0) == 1.0


def test_only_matrices_decay():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv2d(1, 2, 3))
    model.register_parameter("pos_embed", nn.Parameter(torch.zeros(1, 5, 3)))
    decay, rest = param_groups(model, 0.1)
    assert decay["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0.0
    assert {id(p) for p in decay["params"]} == {id(model[0].weight), id(model[2].weight)}
    assert len(rest["params"]) == 5


def test_decay_moves_a_matrix_without_gradient_but_not_a_bias():
    model = nn.Linear(2, 2)
    optimizer = adamw(model, lr=0.1, weight_decay=0.5)
    before = copy.deepcopy(model.state_dict())
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    torch.testing.assert_close(model.weight.data, before["weight"] * (1 - 0.05))
    torch.testing.assert_close(model.bias.data, before["bias"])


def test_weight_average_is_the_recurrence():
    model = nn.BatchNorm1d(3)
    average = WeightAverage(model, 0.9)
    expected = model.weight.detach().clone()
    for n in range(1, 4):
        with torch.no_grad():
            model.weight.add_(1.0)
            model.num_batches_tracked.add_(1)
        average.update(model)
        keep = min(0.9, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * model.weight.detach()
    torch.testing.assert_close(average.average["weight"], expected)
    assert average.average["num_batches_tracked"] == 3
    with pytest.raises(ValueError, match="momentum"):
        WeightAverage(model, 1.0)
