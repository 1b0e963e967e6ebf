"""Losses over the batch of 2 and 3 real processes equal those of one with all rows.

Each process runs a small linear model on its rows and takes the mean of the processes' gradients,
as data-parallel training does. The split of the rows is uneven.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
ROWS = {1: [11], 2: [7, 4], 3: [5, 2, 4]}

CHILD = r"""
import copy, json, sys
import torch
import torch.distributed as dist
from fastequi.functional import dino_loss, distributed, ibot_loss, koleo_loss, nt_xent_loss
from fastequi.losses.dino import Center
from fastequi.losses.koleo import KoLeoLoss
from fastequi.losses.nt_xent import NTXentLoss
from fastequi.losses.vicreg import VICRegLoss
from fastequi.methods.simclr import SimCLRCriterion
from fastequi.methods.vicreg import VICRegCriterion

of_all = NTXentLoss(0.3, group="world")  # before there are other processes
rank, sizes, store = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if len(sizes) > 1:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(sizes))
group, total, mine = distributed.world(), sum(sizes), sizes[rank]
first = sum(sizes[:rank])
data = torch.randn(3, total, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
x1, x2, x3 = data[:, first : first + mine]
weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

def sinkhorn(z1, z2):
    # the mean over this process's images: the whole batch's mean by weight of its share
    loss = dino_loss(torch.stack([z1, z2]), torch.stack([x3 @ weight, x1 @ weight]) / 5,
                     targets="sinkhorn", teacher_temp=0.3, group=group)
    return loss * (mine * len(sizes) / total)

losses = {
    "nt_xent": lambda a, b: nt_xent_loss(a, b, temperature=0.3, group=group),
    "vicreg": lambda a, b: VICRegLoss(group=group)(a, b),
    "vicreg, sizes known": lambda a, b: VICRegLoss(group=group)(a, b, sizes),
    "nt_xent, sizes known": lambda a, b: NTXentLoss(0.3, group)(a, b, sizes),
    "koleo, sizes known": lambda a, b: KoLeoLoss(group)(a, sizes),
    "koleo": lambda a, b: koleo_loss(a, group=group),
    "nt_xent, all": lambda a, b: copy.deepcopy(of_all)(a, b),
    "sinkhorn": sinkhorn,
}
out = {}
for name, loss in losses.items():
    leaf = weight.clone().requires_grad_()
    value = loss(x1 @ leaf, x2 @ leaf)
    (grad,) = torch.autograd.grad(value, leaf)
    if group is not None:
        dist.all_reduce(grad)
        grad /= len(sizes)
        if name == "sinkhorn":
            value = value.detach()
            dist.all_reduce(value)
            value = value / len(sizes)
    out[name] = [value.item(), grad.tolist()]
center = Center(8, 0.9, group)
for part in (x1, x2) if rank == 0 else (x1[:0], torch.cat([x1, x2])):  # one without rows
    center.add(part @ weight)
center.update()
out["center"] = [0.0, center.value.tolist()]
out["row_mean"] = [0.0, distributed.all_reduce_mean(x1.float(), group).tolist()]

def never(*_):
    raise AssertionError("asked for sizes, which stalls a GPU")

distributed.all_gather_sizes = never
for criterion in (VICRegCriterion(6, (8, 8)), SimCLRCriterion(6, (8, 8))):  # as many rows on each
    criterion(x1[:2, None].float(), x2[:2, None].float())["loss"].backward()
print(json.dumps(out))
if group is not None:  # gloo's threads abort a process that leaves with its group still alive
    dist.barrier()
    del group, center, losses, criterion
    dist.destroy_process_group()
"""


def run(processes, folder):
    """What every process printed."""
    sizes = json.dumps(ROWS[processes])
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(rank), sizes, str(folder / f"store{processes}")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    found = []
    for child in children:
        out, err = child.communicate(timeout=240)
        assert child.returncode == 0, err[-2000:]
        found.append(json.loads(out.splitlines()[-1]))
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    (found,) = run(1, tmp_path_factory.mktemp("alone"))
    return found


@pytest.mark.slow("3")
@pytest.mark.parametrize("processes", [2, 3])
def test_value_and_gradient_are_those_of_one_process(processes, alone, tmp_path):
    for found in run(processes, tmp_path):
        assert found.keys() == alone.keys()
        for name, (value, grad) in found.items():
            in_float32 = name.startswith(("vicreg", "row_mean", "center"))
            tolerance = 1e-5 if in_float32 else 1e-9
            assert value == pytest.approx(alone[name][0], rel=tolerance), name
            expected = torch.tensor(alone[name][1], dtype=torch.float64)
            allowed = 10 * tolerance * expected.abs().max().item()
            found_grad = torch.tensor(grad, dtype=torch.float64)
            torch.testing.assert_close(found_grad, expected, rtol=0, atol=allowed)
