"""Tolerances, one place."""

import torch

# relative to the size of the numbers compared: float32 accumulation over a few thousand terms
LOSS = {
    torch.float32: 2e-6,
    torch.float64: 1e-12,
    torch.bfloat16: 2e-6,  # the prediction is exact in float32 once read
    torch.float16: 2e-6,
}
# gradients are stored in the prediction's dtype
GRAD = {
    torch.float32: 1e-5,
    torch.float64: 1e-10,
    torch.bfloat16: 1e-2,
    torch.float16: 2e-3,
}
