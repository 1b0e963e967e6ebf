"""Results larger than what malloc keeps are asked for in huge pages (madvise): page by page their
first writing takes longer than the work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.native import NEEDS_C

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
pytestmark = [
    *NEEDS_C,
    pytest.mark.skipif(not HUGE_PAGES.is_file(), reason="a system without huge pages"),
]

SCRIPT = """
import json
from pathlib import Path

import torch
from torch import Tensor

from fastequi import functional as F
from fastequi.kernels import gelu, short_attention


def is_asked_for(tensor: Tensor) -> bool:
    "Whether huge pages were asked for its middle: `hg` is the flag of madvise(MADV_HUGEPAGE)."
    middle = tensor.data_ptr() + tensor.numel() * tensor.element_size() // 2
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first:
            start, end = (int(part, 16) for part in first.split("-"))
            here = start <= middle < end
        elif here and first == "VmFlags:":
            return "hg" in rest.split()
    raise AssertionError("not a part of this process's memory")


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype).requires_grad_()


def grad(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, [of])[0]


found = {"nothing of ours": is_asked_for(torch.empty(9_000_000))}
for dtype in (torch.float32, torch.bfloat16):
    x = leaf(36_000_000 // (8192 * dtype.itemsize), 8192, dtype=dtype)
    loss = F.ibot_loss(x, x.detach(), student_temp=0.1, teacher_temp=0.1)
    found[f"ibot_loss, {dtype}"] = is_asked_for(grad(loss, x))
x = leaf(512, 8704)
found["vicreg_loss"] = is_asked_for(grad(F.vicreg_loss(x, x.detach()), x))
x = leaf(120, 196, 384)
found["gram_loss"] = is_asked_for(grad(F.gram_loss(x, x.detach()), x))
maps = leaf(2, 32, 14, 14, 768)
boxes = torch.tensor([0.0, 0, 14, 14]).expand(2, 32, 4)
turns = torch.zeros(2, 32, dtype=torch.long)
pairs = [(0, 1), (1, 0)]
loss = F.crop_align_loss(
    maps, maps.detach(), boxes, boxes, turns, bins=4, scale=1.0, pairs=pairs
)
found["crop_align_loss"] = is_asked_for(grad(loss, maps))
rows = leaf(2, 32, 196, 768)
loss = F.correspondence_loss(rows, rows.detach(), top=4, pairs=pairs)
found["correspondence_loss"] = is_asked_for(grad(loss, rows))
photo = torch.zeros(64, 64, 3, dtype=torch.uint8)
windows = torch.tensor([0.0, 0, 64, 64]).expand(64, 4)
for dtype in (torch.float32, torch.uint8):
    side = 224 if dtype == torch.float32 else 448
    views = F.fused_views([photo] * 64, windows, size=side, dtype=dtype)
    found[f"fused_views, {dtype}"] = is_asked_for(views)
images = torch.zeros(16, 3, 224, 224, dtype=torch.uint8)
theta = torch.eye(2, 3).expand(16, 4, 2, 3).contiguous()
found["warp"] = is_asked_for(F.warp(images, theta))
found["gaussian_blur"] = is_asked_for(F.gaussian_blur(images, torch.ones(16, 4)))
found["rot90_batch"] = is_asked_for(F.rot90_batch(images))
x = leaf(16, 4, 196, 768)
loss = F.warp_recon_loss(x, images, theta, layout="patch", patch_size=16)
found["warp_recon_loss"] = is_asked_for(grad(loss, x))
loss = F.blur_recon_loss(x, images, torch.ones(16, 4), layout="patch", patch_size=16)
found["blur_recon_loss"] = is_asked_for(grad(loss, x))
x = leaf(6000, 1536)
made = gelu.gelu(x)
found["gelu"] = is_asked_for(made)
found["gelu, gradient"] = is_asked_for(grad(made.sum(), x))
qkv = leaf(2304, 16, 3, 4, 64)
made = short_attention.short_attention(qkv)
found["short_attention"] = is_asked_for(made)
found["short_attention, gradient"] = is_asked_for(grad(made.sum(), qkv))
print(json.dumps(found))
"""


def test_results_come_in_huge_pages():
    kept = ("MALLOC_", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")  # they change what malloc asks for
    environment = {name: v for name, v in os.environ.items() if not name.startswith(kept)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False
    )
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    assert not found.pop("nothing of ours")  # what follows is of fresh memory, each in its own
    assert all(found.values()), found
