"""Mutual nearest neighbours of tokens, their refinement and the fits, against loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastequi.evaluate.geometry.projective import (
    between_corners,
    corners,
    distances,
    moved,
    token_centres,
)
from fastequi.evaluate.geometry.token_matches import (
    METHODS,
    TEMPERATURE,
    Matches,
    believed,
    least_squares,
    mutual_matches,
    robust,
)
from tests.support.places import code


def maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, *grid, 8, generator=generator) for grid in ((3, 4), (5, 3)))


def by_loops(source, target, patch):
    """(source's centre, target's centre, refined place) of every mutual match."""
    (h, w), (rows, columns) = source.shape[:2], target.shape[:2]

    def cosine(a, b):
        return float(F.cosine_similarity(a, b, dim=0))

    def mirrored(k, n):
        return -k if k < 0 else 2 * (n - 1) - k if k >= n else k

    found = []
    for y in range(h):
        for x in range(w):
            each = [cosine(source[y, x], t) for t in target.flatten(0, 1)]
            best = max(range(len(each)), key=each.__getitem__)
            r, c = divmod(best, columns)
            back = [cosine(target[r, c], s) for s in source.flatten(0, 1)]
            if max(range(len(back)), key=back.__getitem__) != y * w + x:
                continue
            total = right = down = 0.0
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    near = target[mirrored(r + dy, rows), mirrored(c + dx, columns)]
                    weight = math.exp(cosine(source[y, x], near) / TEMPERATURE)
                    total, right, down = total + weight, right + weight * dx, down + weight * dy
            centre = (c + 0.5) * patch, (r + 0.5) * patch
            refined = centre[0] + right / total * patch, centre[1] + down / total * patch
            found.append((((x + 0.5) * patch, (y + 0.5) * patch), centre, refined))
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_matches_and_refined_places_are_those_of_loops(seed):
    source, target = maps(seed)
    for found, a, b in zip(mutual_matches(source, target, 4), source, target, strict=True):
        expected = by_loops(a, b, 4)
        assert len(expected) >= 2
        for name, column in zip(("source", "target", "refined"), range(3), strict=True):
            values = torch.tensor([row[column] for row in expected]).double()
            torch.testing.assert_close(getattr(found, name), values, rtol=0, atol=1e-4)


def test_a_match_between_two_tokens_is_refined_to_between_them():
    """The source's token is as near to two neighbours; the place is half-way, its row unchanged."""
    target = code(token_centres((5, 5), 1).float() / 5).view(1, 5, 5, -1)
    source = target.clone()
    source[0, 2, 2] = code(torch.tensor([0.6 - 1e-4, 0.5]))  # between columns 2 and 3
    [found] = mutual_matches(source, target, 10)
    at = (found.source == torch.tensor([25.0, 25.0]).double()).all(1)
    assert found.refined[at].tolist()[0] == pytest.approx([30, 25], abs=0.5)
    # at the border nothing pulls inwards
    corner = (found.source == torch.tensor([5.0, 5.0]).double()).all(1)
    assert found.refined[corner].tolist()[0] == pytest.approx([5, 5], abs=1e-6)


def test_tokens_that_know_their_place_give_the_homography():
    """Tokens of the second view are coded by where they are in the first."""
    size, patch, grid = 128, 8, (16, 16)
    offsets = torch.rand(6, 4, 2, generator=torch.Generator().manual_seed(0)).double()
    truth = between_corners((2 * offsets - 1) * size / 4, (size, size))
    centres = token_centres(grid, patch)
    second = code(moved(centres, truth).float() / size).unflatten(1, grid)
    first = code(centres.float() / size).unflatten(0, grid).expand_as(second)
    errors = {name: [] for name in METHODS}
    for matches, true in zip(mutual_matches(second, first, patch), truth, strict=True):
        for name, method in METHODS.items():
            errors[name].append(float(distances(method(matches), true, corners(size, size))))
    still = distances(torch.eye(3).double(), truth, corners(size, size)).mean()
    assert max(errors["RANSAC"]) < 4
    assert sum(errors["RANSAC"]) / 6 < still / 8
    assert sum(errors["least squares"]) / 6 < still / 4


def test_fewer_than_four_matches_are_no_fit():
    few = Matches(*(torch.rand(3, 2).double() for _ in range(3)), patch=8)
    assert least_squares(few).isnan().all()
    assert robust(few).isnan().all()


def test_what_cannot_be_becomes_no_motion():
    """NaN, a corner beyond the horizon, a shift by more than two sides; a shift by one stays."""
    nothing = torch.full((3, 3), torch.nan).double()
    beyond = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]]).double()
    far, near = torch.eye(3).double(), torch.eye(3).double()
    far[0, 2], near[0, 2] = 2 * 20 + 1, 20
    found, lost = believed(torch.stack([nothing, beyond, far, near]), 10, 20)
    assert lost.tolist() == [True, True, True, False]
    torch.testing.assert_close(found[:3], torch.eye(3).double().expand(3, 3, 3))
    torch.testing.assert_close(found[3], near)


def test_a_single_row_of_tokens_is_refused():
    with pytest.raises(ValueError, match=r"target: expected 2x2 tokens or more, got 1x5"):
        mutual_matches(torch.rand(1, 3, 3, 4), torch.rand(1, 1, 5, 4), 8)
