"""Labels that are carried by the similarity of tokens, against all similarities written out."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastequi.evaluate.geometry.label_propagation import DINO, Propagation, Settings, carried
from fastequi.evaluate.geometry.propagate import winners


def tokens(count, height, width, channels=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, height, width, channels, generator=generator)


def labelled(height, width, count=3):
    ids = torch.arange(height * width).reshape(height, width) * 7 // 5 % count
    return F.one_hot(ids, count).permute(2, 0, 1).float()


def by_hand(maps, first, settings):
    """All frames, token by token: lists of (similarity, label) of every token that is allowed."""
    height, width = maps.shape[1:3]
    labels = [first]
    for t in range(1, len(maps)):
        before = list(range(max(1, t - settings.frames), t))
        found = torch.zeros_like(first)
        for i in range(height):
            for j in range(width):
                near = []
                for source in [0, *before]:
                    for a in range(height):
                        for b in range(width):
                            if max(abs(a - i), abs(b - j)) <= settings.radius:
                                cosine = F.cosine_similarity(maps[t, i, j], maps[source, a, b], 0)
                                near.append((cosine.item(), labels[source][:, a, b]))
                least = sorted((s for s, _ in near), reverse=True)[: settings.neighbours][-1]
                chosen = [
                    (math.exp(s / settings.temperature), label) for s, label in near if s >= least
                ]
                total = sum(weight for weight, _ in chosen)
                found[:, i, j] = sum(weight * label for weight, label in chosen) / total
        labels.append(found)
    return torch.stack(labels[1:])


def test_the_constants_are_those_of_dinos_script():
    assert Settings(frames=7, radius=12, neighbours=5, temperature=0.1) == DINO


@pytest.mark.parametrize(
    "settings",
    [
        Settings(frames=2, radius=1, neighbours=3),
        Settings(frames=1, radius=9, neighbours=5),
        Settings(frames=7, radius=0, neighbours=2, temperature=0.5),
        Settings(frames=0, radius=2, neighbours=100),
    ],
)
def test_labels_are_those_of_the_nearest_tokens(settings):
    maps, first = tokens(4, 4, 5), labelled(4, 5)
    propagation = Propagation(maps[0], first, settings)
    found = torch.stack([propagation(each) for each in maps[1:]])
    torch.testing.assert_close(found, by_hand(maps, first, settings), atol=1e-5, rtol=1e-5)


def dense(target, sources, labels, settings):
    """The same for one frame, by whole matrices: exp of cosines, those far away times 0."""
    height, width = target.shape[:2]
    cosines = (
        F.normalize(sources, dim=-1).flatten(0, 2) @ F.normalize(target, dim=-1).flatten(0, 1).T
    )
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    near = ((places[:, None] - places).abs().amax(-1) <= settings.radius).repeat(len(sources), 1)
    weights = (cosines / settings.temperature).exp() * near
    least = weights.topk(settings.neighbours, 0).values.amin(0)
    weights[weights < least] = 0
    weights /= weights.sum(0)
    return (labels.transpose(0, 1).flatten(1) @ weights).unflatten(1, (height, width))


@pytest.mark.parametrize(("height", "width", "radius"), [(13, 30, 3), (26, 12, 12), (25, 14, 40)])
def test_tiles_change_nothing(height, width, radius):
    settings = Settings(radius=radius)
    maps, first = tokens(3, height, width), labelled(height, width)
    propagation = Propagation(maps[0], first, settings)
    second, third = propagation(maps[1]), propagation(maps[2])
    expected = dense(maps[1], maps[:1], first[None], settings)
    torch.testing.assert_close(second, expected, atol=1e-5, rtol=1e-5)
    expected = dense(maps[2], maps[:2], torch.stack([first, expected]), settings)
    torch.testing.assert_close(third, expected, atol=1e-5, rtol=1e-5)


def test_tokens_as_similar_as_the_last_neighbour_count_too():
    """A code of places alone is the same in all frames: all eight count, not any five of them."""
    places = torch.eye(9).reshape(3, 3, 9)
    labels = torch.eye(8)[:, :, None, None].expand(8, 8, 3, 3)
    found = carried(places, places.expand(8, 3, 3, 9), labels, DINO)
    torch.testing.assert_close(found, torch.full((8, 3, 3), 1 / 8))


def test_a_large_temperature_is_a_mean():
    maps, first = tokens(2, 3, 3), labelled(3, 3)
    settings = Settings(radius=5, neighbours=9, temperature=1e9)
    found = Propagation(maps[0], first, settings)(maps[1])
    torch.testing.assert_close(found, first.mean((1, 2))[:, None, None].expand(3, 3, 3))


def test_labels_are_those_of_dinos_script():
    """What label_propagation, norm_mask and the upsampling of its script give on a CPU: three
    frames, a queue of two, a neighbourhood of two, five neighbours, patches of 4 px."""
    n = torch.arange(4 * 5 * 7 * 8, dtype=torch.float64)
    maps = torch.sin(n * n * 0.001 + n).float().reshape(4, 5, 7, 8)
    ids = torch.zeros(5, 7, dtype=torch.long)
    ids[1:4, 1:4] = 1
    ids[2:, 4:] = 2
    first = F.one_hot(ids, 3).permute(2, 0, 1).float()
    propagation = Propagation(maps[0], first, Settings(frames=2, radius=2))
    found = [propagation(each) for each in maps[1:]]
    of_object = [0.3110495, 0.5846713, 0.1173678, 0.4006473, 0.1076737, 0.0431473, 0.0904648]
    torch.testing.assert_close(found[-1][1, 0], torch.tensor(of_object), atol=1e-6, rtol=0)
    of_object = [0.2136983, 0.2114420, 0.2023584, 0.4526498, 0.5370942, 0.7789183, 0.7946081]
    torch.testing.assert_close(found[-1][2, 4], torch.tensor(of_object), atol=1e-6, rtol=0)
    pixels = [winners(each, 4) for each in found]
    counts = [np.bincount(each.ravel(), minlength=3).tolist() for each in pixels]
    assert counts == [[141, 148, 271], [282, 60, 218], [218, 93, 249]]
    assert ["".join(map(str, row)) for row in pixels[-1][::2, ::2]] == [
        *("00110011202222", "00110011002222", "00110011000222", "20000011100022"),
        *("00000011220022", "00002222222222", "00000122222222", "11100022222222"),
        *("00000012222222", "00000012222222"),
    ]
