"""DINO's and DINOv2's official losses written out, and logits to compare on."""

import torch
import torch.nn.functional as F

from fastequi.functional import dino as functional_dino


def official_dino(student, teacher, student_temp, teacher_temp, center=0.0, q=None):
    """facebookresearch/dino, DINOLoss.forward: every pair of different views."""
    q = F.softmax((teacher - center) / teacher_temp, -1) if q is None else q
    total, terms = 0.0, 0
    for iq in range(len(teacher)):
        for v in range(len(student)):
            if v == iq:
                continue
            logp = F.log_softmax(student[v] / student_temp, -1)
            total = total + torch.sum(-q[iq] * logp, -1).mean()
            terms += 1
    return total / terms


def official_sinkhorn(teacher, temp, iterations):
    """facebookresearch/dinov2, DINOLoss.sinkhorn_knopp_teacher."""
    q = torch.exp(teacher / temp).T
    samples, prototypes = q.shape[1], q.shape[0]
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdim=True)
        q /= prototypes
        q /= q.sum(0, keepdim=True)
        q /= samples
    return (q * samples).T


def logits(shape, scale=1.0, seed=0, dtype=torch.float32):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def near(ours, reference, tolerance):
    error = (ours.double() - reference).norm() / reference.norm().clamp(min=1e-12)
    assert error <= tolerance, f"relative error {error:.1e}"


def storing(monkeypatch, most):
    """Losses of rows and layers store logits of at most so many bytes."""
    monkeypatch.setattr(functional_dino, "_FEW_BYTES", most)
    for calls in (functional_dino._DINO, functional_dino._IBOT):  # nothing that was kept before
        monkeypatch.setattr(calls, "_known", {})
