"""Paths against independent references: PIL's rotation, torch.rot90, shifts, plain formulas."""

import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import fastequi
from fastequi.paths import (
    SE2,
    Blur,
    Color,
    Gain,
    Rotation,
    Translation,
    color_matrix,
    fractions,
    se2_matrix,
)
from fastequi.philox import Draws

DRAWS = Draws.of(0, 0, np.arange(512))
FAMILIES = [SE2(), Rotation(), Translation(), Color(), Gain(5), Blur()]


def sample(image, theta, size):
    grid = F.affine_grid(theta, (len(image), image.shape[1], *size), align_corners=False)
    return F.grid_sample(image, grid, align_corners=False)


def smooth(h, w, dtype=torch.float64):
    y, x = torch.meshgrid(torch.arange(h, dtype=dtype), torch.arange(w, dtype=dtype), indexing="ij")
    return (torch.sin(x / 7) + torch.cos(y / 5 + x / 11)).expand(1, 1, h, w)


def test_fractions():
    assert fractions(0) == []
    assert fractions(2) == [1 / 3, 2 / 3]
    assert fractions(3) == [0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="num_steps: expected K >= 0, got -1"):
        fractions(-1)


@pytest.mark.parametrize("path", FAMILIES, ids=lambda p: type(p).__name__)
def test_parameters_fill_their_range(path):
    params = path.sample(DRAWS, 112)
    scales = torch.tensor(path.scales(112))
    assert params.shape == (512, len(path.names)) == (512, len(scales))
    assert params.dtype == torch.float32
    assert (params.abs() <= scales).all()
    low = torch.tensor([path.low]) if isinstance(path, Blur) else -scales
    assert (params.min(0).values < low + 0.02 * scales).all()
    assert (params.max(0).values > 0.98 * scales).all()
    torch.testing.assert_close(params, path.sample(DRAWS, 112), rtol=0, atol=0)


def test_translations_scale_with_the_view():
    assert Translation(10).scales(224) == (10, 10)
    assert SE2(30, 10).scales(112) == (30, 5, 5)


@pytest.mark.parametrize("path", [SE2(), Rotation(), Translation()])
def test_every_point_is_its_fraction_of_the_parameters(path):
    params = path.sample(DRAWS, 32).double()[:16]
    points = path.at(params, [0.0, 1 / 3, 0.5, 1.0], (32, 32)).theta
    assert points.shape == (16, 4, 2, 3)
    torch.testing.assert_close(points[:, 0], torch.eye(2, 3).double().expand(16, 2, 3))
    for index, t in ((1, 1 / 3), (2, 0.5), (3, 1.0)):
        alone = path.at(params * t, [1.0], (32, 32)).theta[:, 0]
        torch.testing.assert_close(points[:, index], alone)
    if "angle" in path.names:
        angles = torch.rad2deg(torch.atan2(points[..., 1, 0], points[..., 0, 0]))
        torch.testing.assert_close(angles[:, 1], params[:, 0] / 3)


def test_color_and_blur_shrink_towards_the_identity():
    params = Color().sample(DRAWS, 32).double()[:8]
    points = Color().at(params, [0.0, 0.25], (32, 32))
    identity = torch.eye(3, 4).double().expand(8, 3, 4)
    torch.testing.assert_close(points.color[:, 0], identity, rtol=0, atol=1e-12)
    b, c, s, h = (params / 4).unbind(-1)
    torch.testing.assert_close(points.color[:, 1], color_matrix(1 + b, 1 + c, 1 + s, h))
    torch.testing.assert_close(points.theta[0, 0], torch.eye(2, 3).double())
    assert [Blur(high=high).max_sigma for high in (0.5, 2.0, 2.1, 5.0)] == [2, 2, 3, 5]
    sigma = Blur().sample(DRAWS, 32)
    torch.testing.assert_close(Blur().at(sigma, [0.5, 1.0], (32, 32)).sigma[:, 0], sigma[:, 0] / 2)


@pytest.mark.parametrize("angle", [-40.0, 15.0, 45.0])
def test_positive_angles_turn_counter_clockwise_like_pil(angle):
    image = smooth(65, 65)
    theta = se2_matrix(torch.tensor([angle]).double(), torch.zeros(1, 2).double(), (65, 65))
    ours = sample(image, theta, (65, 65))[0, 0]
    pil = Image.fromarray(image[0, 0].float().numpy()).rotate(angle, Image.Resampling.BILINEAR)
    centre = slice(16, 49)
    np.testing.assert_allclose(ours[centre, centre], np.asarray(pil)[centre, centre], atol=2e-2)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_rot90(turns):
    image = torch.randn(1, 3, 24, 24, dtype=torch.float64)
    theta = SE2().at(torch.tensor([[90.0 * turns, 0, 0]]).double(), [1.0], (24, 24)).theta[:, 0]
    turned = torch.rot90(image, turns, (2, 3))
    torch.testing.assert_close(sample(image, theta, (24, 24)), turned, rtol=0, atol=1e-9)


def test_shifts_move_the_content_right_and_down():
    image = torch.zeros(1, 1, 16, 20, dtype=torch.float64)
    image[0, 0, 4, 6] = 1
    theta = Translation().at(torch.tensor([[3.0, 2.0]]).double(), [1.0], (16, 20)).theta[:, 0]
    moved = sample(image, theta, (16, 20))
    assert moved[0, 0, 6, 9] == pytest.approx(1)
    assert moved.sum() == pytest.approx(1)


def test_a_shift_follows_the_rotation():
    """The content turns about the centre, then moves as one sees it."""
    image = torch.zeros(1, 1, 17, 17, dtype=torch.float64)
    image[0, 0, 8, 12] = 1  # right of the centre
    theta = SE2().at(torch.tensor([[90.0, 2.0, 1.0]]).double(), [1.0], (17, 17)).theta[:, 0]
    moved = sample(image, theta, (17, 17))
    assert moved[0, 0, 8 - 4 + 1, 8 + 2] == pytest.approx(1)


def test_rotation_stays_rigid_in_a_wide_view():
    """Lengths in pixels do not change when height and width differ."""
    size = torch.tensor([40.0, 20.0]).double()  # width, height
    theta = Rotation().at(torch.tensor([[30.0]]).double(), [1.0], (20, 40)).theta[0, 0]
    in_pixels = torch.diag(size / 2) @ theta[:, :2] @ torch.diag(2 / size)
    torch.testing.assert_close(in_pixels @ in_pixels.T, torch.eye(2).double())
    assert math.degrees(math.acos(in_pixels[0, 0])) == pytest.approx(30)


@pytest.mark.parametrize("path", [SE2(30, 5), Rotation(), Translation(), Color(), Blur(0.5, 1.5)])
def test_a_number_of_images_is_drawn_by_pytorchs_generator(path):
    torch.manual_seed(0)
    first = path.sample(1000, 112)
    torch.manual_seed(0)
    assert torch.equal(path.sample(1000, 112), first)
    assert not torch.equal(path.sample(1000, 112), first)
    by_counter = path.sample(Draws.of(0, 0, range(1000)), 112)
    assert first.shape == by_counter.shape
    assert first.dtype == by_counter.dtype
    for drawn in (first, by_counter):
        low, high = (path.low, path.high) if isinstance(path, Blur) else (-1.0, 1.0)
        unit = drawn if isinstance(path, Blur) else drawn / torch.tensor(path.scales(112))
        assert low <= unit.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < unit.max() <= high
    with pytest.raises(TypeError, match="draws: expected a number of images, or Draws, got Gen"):
        path.sample(torch.Generator(), 112)


def test_sizes_to_draw_for_are_numbers_of_pixels():
    for size in ((14, 14), 14.5):
        with pytest.raises(TypeError, match="size: expected an integer"):
            SE2().sample(2, size)
    with pytest.raises(TypeError, match=r"at\(\) takes 4 positional arguments"):  # not a width
        SE2().at([[0.0, 0, 0]], 1.0, 14, 14)


def test_help_says_what_the_methods_of_a_path_do():
    for path in (SE2, Rotation, Translation, Color, Gain, Blur):
        for name in ("at", "sample", "scales"):
            assert len(inspect.getdoc(getattr(path, name)) or "") > 40, (path, name)


@pytest.mark.parametrize("path", FAMILIES, ids=lambda p: type(p).__name__)
def test_help_names_the_parameters_and_what_a_point_has(path):
    said = inspect.getdoc(type(path))
    columns = "2C" if isinstance(path, Gain) else str(len(path.names))
    assert f"[B, {columns}]" in said
    assert all(f'"{name}"' in said for name in path.names if name[-1] not in "1234")
    point = path.at(path.sample(3, 64), 0.5, 64)
    assert type(point) is fastequi.Transform
    assert tuple(point.theta.shape) == (3, 1, 2, 3)
    shapes = {"color": (3, 1, 5, 2) if isinstance(path, Gain) else (3, 1, 3, 4), "sigma": (3, 1)}
    changed = {"Color": "color", "Gain": "color", "Blur": "sigma"}.get(type(path).__name__)
    for name, shape in shapes.items():
        found = getattr(point, name)
        assert (found is None) if name != changed else (tuple(found.shape) == shape)


def test_zoom_takes_the_view_out_of_a_larger_source():
    image = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    still = SE2().at(torch.zeros(1, 3).double(), [1.0], (32, 32), zoom=32 / 48).theta[:, 0]
    centre = image[..., 8:-8, 8:-8]
    torch.testing.assert_close(sample(image, still, (32, 32)), centre, rtol=0, atol=1e-9)
    shifted = (
        SE2().at(torch.tensor([[0.0, 5, -3]]).double(), [1.0], (32, 32), zoom=32 / 48).theta[:, 0]
    )
    expected = image[..., 11 : 11 + 32, 3 : 3 + 32]
    torch.testing.assert_close(sample(image, shifted, (32, 32)), expected, rtol=0, atol=1e-9)
    for path in (Color(), Gain(2), Blur()):
        theta = path.at(path.sample(DRAWS, 32), [0.5], (32, 32), zoom=32 / 48).theta
        torch.testing.assert_close(theta[0, 0], torch.eye(2, 3) * 32 / 48)


def test_gains_and_offsets_of_channels():
    path = Gain(12, gain=0.5, offset=0.2)
    assert path.names[0] == "gain0"
    assert path.names[-1] == "offset11"
    params = path.sample(DRAWS, 32)
    transform = path.at(params, [0.0, 0.25, 1.0], 32)
    assert transform.color.shape == (512, 3, 12, 2)
    gains, offsets = params.split(12, 1)
    whole = torch.stack([1 + gains, offsets], -1)
    torch.testing.assert_close(transform.color[:, 2], whole)
    still = torch.tensor([1.0, 0.0]).expand(12, 2)
    torch.testing.assert_close(transform.color[:, 1], still + (whole - still) / 4)
    image = torch.rand(512, 12, 3, 3)
    warped = fastequi.warp(image, transform.theta, color=transform.color)
    torch.testing.assert_close(warped[:, 0], image)
    expected = image * whole[..., 0, None, None] + whole[..., 1, None, None]
    torch.testing.assert_close(warped[:, 2], expected)


def matrix(b=1.0, c=1.0, s=1.0, h=0.0):
    return color_matrix(*(torch.tensor(v, dtype=torch.float64) for v in (b, c, s, h)))


def test_color_matrix():
    torch.testing.assert_close(matrix(), torch.eye(3, 4).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix(b=1.3), 1.3 * torch.eye(3, 4).double())
    contrast = matrix(c=0.6)
    torch.testing.assert_close(contrast[:, 3], torch.full((3,), 0.2).double())
    torch.testing.assert_close(contrast[:, :3], 0.6 * torch.eye(3).double())
    luma = torch.tensor([0.299, 0.587, 0.114]).double()
    torch.testing.assert_close(matrix(s=0)[:, :3], luma.expand(3, 3), rtol=0, atol=2e-3)
    torch.testing.assert_close(luma @ matrix(s=1.7, h=0.2)[:, :3], luma, rtol=0, atol=2e-3)
    turn, back = matrix(h=0.13)[:, :3], matrix(h=-0.13)[:, :3]
    torch.testing.assert_close(turn @ back, torch.eye(3).double())
    torch.testing.assert_close(matrix(h=1.0), torch.eye(3, 4).double(), rtol=0, atol=1e-9)


def test_hue_turns_red_towards_yellow():
    red, green, blue = (matrix(h=0.08)[:, :3] @ torch.tensor([0.7, 0.2, 0.2]).double()).tolist()
    assert green > 0.25
    assert blue < 0.2
    assert red > green


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SE2(degrees=-1), "degrees: expected a finite half-range >= 0, got -1"),
        (lambda: SE2(pixels=math.nan), "pixels: expected"),
        (lambda: Rotation(math.inf), "degrees: expected"),
        (lambda: Translation(-2), "pixels: expected"),
        (lambda: Color(hue=-0.1), "hue: expected"),
        (lambda: Gain(0), "channels: expected an integer >= 1, got 0"),
        (lambda: Gain(2, offset=-1.0), "offset: expected a finite half-range >= 0"),
        (lambda: Blur(-0.1, 1), "low: expected"),
        (lambda: Blur(2, 1), "high: expected low <= high"),
    ],
)
def test_ranges_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
