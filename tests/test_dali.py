"""DALI's graph on real files: decoding rules, colour maths, operators against plain formulas."""

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali")

from fastequi.data.config import Augment, local_crop
from fastequi.data.dali import ViewPipeline, feed_of, inputs
from fastequi.data.decode import decoded_sizes, decoder_backend
from fastequi.data.loader import make_loader
from fastequi.data.sources.image_sets import image_folder
from fastequi.data.views.parameters import ViewParams, crop_params, view_params
from fastequi.paths import SE2, color_matrix
from fastequi.philox import Draws
from tests.support.dali import CPU, config, whole

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (32, 32, 3), np.uint8)


def run(cfg, paths, v1, u):
    feed = feed_of(cfg, [str(path) for path in paths], v1, u)
    v1, u, _ = ViewPipeline(cfg, len(paths), lambda: feed, CPU, 1).run()
    return v1, u


def decoded(path, size=32):
    return run(config(size=size), [path], whole(1), whole(1))[1][0].permute(1, 2, 0).numpy()


@pytest.fixture
def noise(tmp_path):
    path = tmp_path / "noise.png"
    Image.fromarray(NOISE).save(path)
    return path


def test_untouched_windows_are_the_pixels_themselves(noise):
    v1, u = run(config(), [noise], whole(1), whole(1))
    np.testing.assert_array_equal(u[0].permute(1, 2, 0), NOISE)
    np.testing.assert_allclose(v1[0].permute(1, 2, 0) * 255, NOISE, atol=1e-4)
    assert u.is_contiguous(memory_format=torch.channels_last)
    assert v1.is_contiguous()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_mode_comes_out_as_rgb(tmp_path, mode):
    image = Image.fromarray(NOISE)
    image = image.quantize(64) if mode == "P" else image.convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(NOISE[..., 0]))
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path, quality=95) if mode == "CMYK" else image.save(path)
    with Image.open(path) as saved:
        expected = np.asarray(saved.convert("RGB")).astype(int)
    assert np.abs(decoded(path) - expected).max() <= 1


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    values = RNG.integers(0, 65536, (32, 32)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = np.repeat(values[..., None] / 257, 3, -1)
    assert np.abs(decoded(tmp_path / "a.png") - expected).max() <= 1


@pytest.mark.parametrize("extension", ["bmp", "webp", "jpg"])
def test_formats(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "progressive": True}}
    Image.fromarray(NOISE).save(path, **options.get(extension, {}))
    with Image.open(path) as saved:
        assert np.abs(decoded(path) - np.asarray(saved.convert("RGB")).astype(int)).max() <= 2


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_is_applied_and_the_sizes_agree(tmp_path, extension, orientation):
    y, x = np.mgrid[:40, :60]
    pixels = np.stack([4 * x, 6 * y, 0 * x], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{extension}"
    Image.fromarray(pixels).save(path, exif=exif.tobytes(), quality=95)
    height, width = image_folder(tmp_path).sizes[0]
    upright = np.rot90(pixels, {3: 2, 6: -1, 8: 1}[orientation])
    assert upright.shape == (height, width, 3)
    u = decoded(path, 20).astype(int)
    ours, expected = (a[[0, 0, -1, -1], [0, -1, 0, -1], :2] > 110 for a in (u, upright))
    np.testing.assert_array_equal(ours, expected)


def test_colour_is_the_matrix_of_paths(noise):
    """fastequi.paths.color_matrix and color_twist agree to rounding; DALI's grey is 128 / 255."""
    m = 16
    unit = RNG.random((m, 4))
    color = (np.array([0.6, 0.6, 0, -40]) + unit * np.array([0.8, 0.8, 1.6, 80])).astype(np.float32)
    color[0], color[1, 2] = (1, 1, 1, 0), 0
    jitter = Augment(flip=0, blur=0)
    cfg = config(a1=jitter, a2=jitter, samples_per_decode=m, batch_size=m)
    params = whole(m, color=color)
    v1, u = run(cfg, [noise], params, params)
    b, c, s, h = torch.from_numpy(color).double().unbind(-1)
    matrix = color_matrix(b, c, s, h / 360)
    image = torch.from_numpy(NOISE).double() / 255
    expected = torch.einsum("mij,hwj->mihw", matrix[..., :3], image) + matrix[..., 3, None, None]
    expected = expected.clamp(0, 1) * 255
    assert (u - expected).abs().max() < 0.8
    np.testing.assert_allclose(v1 * 255, u, atol=1e-4)
    np.testing.assert_array_equal(u[0].permute(1, 2, 0), NOISE)


def test_blur_solarize_and_their_exact_off(noise):
    m = 4
    second = Augment(flip=0, jitter=0, gray=0, blur=0.5, solarize=0.5)
    cfg = config(a2=second, samples_per_decode=m, batch_size=m)
    sigma = np.array([0, 1.5, 0, 0.6], np.float32)
    solarize = np.array([False, False, True, True])
    _, u = run(cfg, [noise], whole(m), whole(m, sigma=sigma, solarize=solarize))
    u = u.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(u[0], NOISE)
    np.testing.assert_array_equal(u[2], np.where(NOISE >= 128, 255 - NOISE, NOISE))
    taps = np.arange(-8, 9)
    kernel = np.exp(-(taps**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    blurred = NOISE.astype(float)
    for axis in (0, 1):
        blurred = np.apply_along_axis(np.convolve, axis, blurred, kernel, "same")
    inside = slice(8, -8)
    assert np.abs(u[1][inside, inside] - blurred[inside, inside]).max() < 4  # DALI truncates at 3σ
    assert u[3].std() < u[2].std()


def test_one_sample_per_decode_does_the_same_as_several(noise):
    """The graph for M = 1 has no frames; its operators must agree with the one that has."""
    second = Augment(solarize=0.5)
    changes = {
        "color": np.array([[1.2, 0.8, 1.3, 20]], np.float32),
        "sigma": np.array([0.9], np.float32),
        "solarize": np.array([True]),
    }
    one = ViewParams(np.float32([[0.1, 0.9]]), np.float32([[0.8, 0.3]]), **changes)
    two = ViewParams(
        *(np.repeat(a, 2, 0) for a in (one.start, one.end)),
        **{name: np.repeat(a, 2, 0) for name, a in changes.items()},
    )
    cfg = config(second, second, samples_per_decode=1, batch_size=1)
    v1, u = run(cfg, [noise], one, one)
    cfg = config(second, second, samples_per_decode=2, batch_size=2)
    v1_two, u_two = run(cfg, [noise], two, two)
    for k in range(2):
        assert torch.equal(u_two[k], u[0])
        assert torch.equal(v1_two[k], v1[0])


def test_a_mirrored_window_is_the_flipped_one(noise):
    straight = ViewParams(np.float32([[0.25, 0.25]]), np.float32([[0.75, 0.75]]))
    mirrored = ViewParams(np.float32([[0.25, 0.75]]), np.float32([[0.75, 0.25]]))
    v1, u = run(config(size=16), [noise], straight, mirrored)
    np.testing.assert_array_equal(u[0].permute(1, 2, 0), NOISE[8:24, 8:24][:, ::-1])
    np.testing.assert_allclose(v1[0].permute(1, 2, 0) * 255, NOISE[8:24, 8:24], atol=1e-4)


def test_shrinking_is_antialiased(tmp_path):
    black_or_white = RNG.integers(0, 2, (96, 96), np.uint8) * 255
    Image.fromarray(black_or_white).save(tmp_path / "a.png")
    small = decoded(tmp_path / "a.png", 16)
    assert small.mean() == pytest.approx(127, abs=8)
    assert small.std() < 32  # the mean of four neighbours alone would leave 64


@pytest.mark.parametrize("encoded", [False, True])
def test_exactly_the_bad_files_are_named(tmp_path, noise, encoded):
    good = [tmp_path / f"{i}.jpg" for i in range(5)]
    for i, path in enumerate(good):
        Image.fromarray(NOISE[: 20 + i]).save(path, quality=95)
    cut, empty, text = (tmp_path / f"{name}.jpg" for name in ("cut", "empty", "text"))
    cut.write_bytes(good[0].read_bytes()[:900])
    empty.write_bytes(b"")
    text.write_text("no image")
    paths = [good[0], cut, *good[1:3], empty, *good[3:], text, good[0]]
    files = [np.frombuffer(p.read_bytes(), np.uint8) if encoded else str(p) for p in paths]
    found = decoded_sizes(files, CPU, 1)
    for path, one in zip(paths, found, strict=True):
        if path in (cut, empty, text):
            assert isinstance(one, str), path
            assert one, path
            assert "\n" not in one
        else:
            assert one == (20 + good.index(path), 32)
    assert found[1] == "Failed to decode"
    assert decoded_sizes([], CPU, 1) == []
    if not encoded:
        (gone,) = decoded_sizes([str(tmp_path / "gone.jpg")], CPU, 1)
        assert "gone.jpg" in gone


def test_backend_is_named():
    name, why = decoder_backend(CPU)
    assert name.startswith("dali 2")
    assert name.endswith(", cpu")
    assert why


def test_other_devices_are_refused(noise):
    with pytest.raises(ValueError, match="expected cpu or cuda, got meta"):
        ViewPipeline(config(), 1, lambda: (), torch.device("meta"), 1)


@pytest.mark.parametrize("samples", [1, 2])
def test_local_crops_are_windows_of_their_own(tmp_path, samples):
    """Each crop has its window, colour, blur and flag; [V, B] in the order of the parameters."""
    paths = []
    for i in range(2):
        path = tmp_path / f"{i}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)).save(path)
        paths.append(path)
    views, n = 3, 2 * samples
    aug = Augment(area=(0.1, 0.5), jitter=0.5, gray=0.5, blur=0.5, solarize=0.5)
    cfg = config(local_crops=views, local_crop_size=16, a3=aug, samples_per_decode=samples)
    draws = Draws.of(0, 0, np.arange(n))
    params = crop_params(cfg, draws, np.full((n, 2), 32))
    feed = feed_of(cfg, [str(path) for path in paths], whole(n), whole(n), params)
    _, _, crops = ViewPipeline(cfg, 2, lambda: feed, CPU, 1).run()
    assert crops.shape == (views, n, 3, 16, 16)
    alone = config(a1=aug, size=16)
    for v in range(views):
        for b in range(n):
            one = [None if x is None else x[b * views + v][None] for x in astuple(params)]
            v1, _ = run(alone, [paths[b // samples]], ViewParams(*one), whole(1))
            np.testing.assert_allclose(crops[v, b], v1[0], atol=1e-5)


def test_a_run_with_crops_and_masks_resumes_with_the_same_batches(noise):
    source = image_folder(noise.parent)
    cfg = replace(
        config(local_crops=2, local_crop_size=16, a3=local_crop(), mask_share=0.5),
        batch_size=4, samples_per_decode=2, repeat=16,
    )  # fmt: skip
    shared = {"seed": 3, "grid": 4}
    with make_loader(source, cfg, SE2(), **shared) as whole_run:
        batches = [next(whole_run) for _ in range(3)]
        with pytest.raises(ValueError, match="grid: masks"):
            make_loader(source, cfg, SE2(), seed=3)
    with make_loader(source, cfg, SE2(), **shared) as first:
        next(first)
        state = first.state_dict()
    with make_loader(source, cfg, SE2(), **shared, state=state) as second:
        for expected in batches[1:]:
            found = next(second)
            assert torch.equal(found.local_crops, expected.local_crops)
            assert torch.equal(found.masks.mask, expected.masks.mask)
    assert batches[0].local_crops.shape == (2, 4, 3, 16, 16)
    assert batches[0].masks.mask.shape == (2, 4, 16)
    assert not torch.equal(batches[0].local_crops[0], batches[0].local_crops[1])


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shared_crop": True},
        {"local_crops": 2, "local_crop_size": 16},
        {"rotations": True, "local_crops": 1, "local_crop_size": 16},
    ],
)
def test_the_feed_holds_the_declared_inputs(changes, samples):
    """Name, type and order are declared once; a batch's arrays follow."""
    flip = 0.0 if changes.get("rotations") else 0.5
    busy = Augment(flip=flip, solarize=0.2)
    cfg = config(busy, busy, a3=busy, samples_per_decode=samples, batch_size=4 * samples, **changes)
    declared = inputs(cfg)
    names = [(one.view.name, one.name) for one in declared]
    assert len(set(names)) == len(names)
    assert (("v1", "start") in names) == (not cfg.shared_crop)
    assert (("local", "hue") in names) == (cfg.local_crops > 0)
    assert (("u", "matrix") in names) == cfg.rotations
    draws = Draws.of(0, 0, np.arange(4 * samples))
    sizes = np.tile((40, 50), (4 * samples, 1))
    v1, u = view_params(cfg, draws, sizes)
    files, *arrays = feed_of(cfg, ["a.jpg"] * 4, v1, u, crop_params(cfg, draws, sizes))
    assert len(files) == 4
    assert len(arrays) == len(declared)
    for one, array in zip(declared, arrays, strict=True):
        assert array.dtype == one.dtype
        lead = (4, one.view.frames) if one.view.frames > 1 else (4,)
        assert array.shape[: len(lead)] == lead
