"""What two crops share, found in each of them, rotated or not: on images that show coordinates."""

import pytest
import torch
import torch.nn.functional as F

from fastequi.data.views.boxes import rotate_boxes, shared_boxes


def coordinates(window, size):
    """[2, size, size] a crop of a picture of coordinates: x and y of its pixels' centres."""
    x0, y0, x1, y1 = window.tolist()
    step = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    x, y = x0 + step * (x1 - x0), y0 + step * (y1 - y0)
    return torch.stack([x.expand(size, size), y[:, None].expand(size, size)])


def value_at(image, x, y):
    """Bilinear, at a point in pixels: linear images are read exactly within them."""
    size = image.shape[-1]
    grid = torch.tensor([2 * x / size - 1, 2 * y / size - 1], dtype=torch.float64)
    return F.grid_sample(image[None], grid.view(1, 1, 1, 2), align_corners=False)[0, :, 0, 0]


@pytest.mark.parametrize("sizes", [(224, 96), (33, 17), (224, 224)])
@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("other", range(4))
def test_every_pair_of_rotations_shows_the_same_region(sizes, turn, other):
    generator = torch.Generator().manual_seed(turn * 4 + other)
    for _ in range(20):
        low = torch.rand(2, 2, generator=generator, dtype=torch.float64) * 100
        extent = 150 + torch.rand(2, 2, generator=generator, dtype=torch.float64) * 150
        windows = torch.cat([low, low + extent], 1)
        boxes = shared_boxes(windows[0], windows[1], *sizes)
        shared = torch.cat([windows[:, :2].amax(0), windows[:, 2:].amin(0)])
        for window, box, size, k in zip(windows, boxes, sizes, (turn, other), strict=True):
            image = torch.rot90(coordinates(window, size), k, (1, 2))
            turned = rotate_boxes(box, torch.tensor(k), size)
            assert (turned[2:] > turned[:2]).all()
            # its corners, a pixel inwards, show the shared region's corners
            inner = turned + torch.tensor([1.0, 1.0, -1.0, -1.0])
            found = [value_at(image, inner[i], inner[j]) for i in (0, 2) for j in (1, 3)]
            found = torch.stack(found)
            pixel = (window[2:] - window[:2]) / size
            wanted = shared + torch.cat([pixel, -pixel])
            ends = torch.cat([found.amin(0), found.amax(0)])
            assert ((ends - wanted).abs() / pixel.repeat(2)).max() < 0.01


def test_a_rotation_of_a_rectangle_and_back():
    boxes = torch.tensor([[1.0, 2.0, 5.0, 4.0], [0.0, 0.0, 7.0, 3.0]])
    for k in range(-3, 5):
        turned = rotate_boxes(boxes, torch.full((2,), k), (10, 8))
        size = (8, 10) if k % 2 else (10, 8)
        torch.testing.assert_close(rotate_boxes(turned, torch.full((2,), -k), size), boxes)
    torch.testing.assert_close(
        rotate_boxes(boxes[:1], torch.tensor([1]), (10, 8)), torch.tensor([[2.0, 3.0, 4.0, 7.0]])
    )


def test_crops_without_a_common_part_say_so():
    first, second = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([2.0, 0.0, 3.0, 1.0])
    box, _ = shared_boxes(first, second, 8, 8)
    assert box[2] < box[0]
