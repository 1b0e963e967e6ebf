"""GTSA's patch correspondence by loops over patches."""

import torch
import torch.nn.functional as F


def by_hand(student, teacher, top):
    """Each patch looks for its match; the best `top` of a direction are averaged."""
    losses = []
    for s, t in zip(student, teacher, strict=True):
        directions = []
        for one, other in ((s, t), (t, s)):
            matches = []
            for patch in one:
                cosines = [F.cosine_similarity(patch, found, 0) for found in other]
                matches.append(max(cosines, key=lambda c: c.item()))
            matches.sort(key=lambda c: -c.item())
            directions.append(-torch.stack(matches[:top]).mean())
        losses.append(sum(directions) / 2)
    return torch.stack(losses).mean()
