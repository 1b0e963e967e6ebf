"""Views in one pass: against float64, against DALI's operators, any window, any build."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastequi import fused_views
from fastequi.kernels import backend, fused_views_triton, native, toolchain
from fastequi.kernels.fused_views import resample_matrix
from fastequi.paths import color_matrix
from tests.support.native import expect_the_same_bits_of_any_threads, instruction_set

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of the photographs
needs_c = pytest.mark.skipif(
    torch.cuda.is_available() or native.obstacle() is not None, reason="no C kernels"
)


@pytest.fixture(params=["torch", pytest.param("native", marks=needs_c), "triton"])
def backend_of_views(request):
    with backend.force(request.param):
        yield request.param


@st.composite
def problems(draw, most=40):
    """A random call: photographs of any sizes and strides, windows mirrored or not."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    side = st.integers(1, most)
    photos = []
    for _ in range(draw(st.integers(1, 3))):
        height, width = draw(side), draw(side)
        image = torch.randint(
            0, 256, (height, width + 3, 3), dtype=torch.uint8, generator=generator
        )
        photos.append(image[:, 1 : 1 + width])
        if draw(st.booleans()):
            photos[-1] = photos[-1].flip(0).transpose(0, 1)
    count = draw(st.integers(1, 5))
    photo = torch.randint(0, len(photos), (count,), generator=generator)
    windows = []
    for i in photo.tolist():
        sides = torch.tensor(photos[i].shape[:2])
        ends = torch.rand(2, 2, generator=generator) * sides
        if draw(st.booleans()):  # whole pixels, or all of it
            ends = torch.stack([torch.zeros(2), sides.float()])
        if draw(st.booleans()):  # very small
            ends[1] = ends[0] + 0.01 * (ends[1] - ends[0])
        ends[1] = torch.where(ends[0] == ends[1], (ends[0] + 1e-3).clamp(max=sides), ends[1])
        ends[0] = torch.where(ends[0] == ends[1], ends[0] - 0.5, ends[0])
        windows.append(torch.cat([ends[0], ends[1]]))
    options = {"size": (draw(st.integers(1, 40)), draw(st.integers(1, 40))), "photo": photo}
    if draw(st.booleans()):
        noise = torch.randn(count, 3, 4, generator=generator)
        options["color"] = torch.eye(3, 4) + draw(st.sampled_from([0.1, 2.0])) * noise
    if draw(st.booleans()):
        sigma = draw(st.sampled_from([0.2, 2.0, 7.0])) * torch.rand(count, generator=generator)
        sigma[0] = draw(st.sampled_from([0.0, 1e-6, sigma[0].item()]))
        options["sigma"] = sigma
    if draw(st.booleans()):
        options["solarize"] = torch.rand(count, generator=generator) < 0.5
    if draw(st.booleans()):
        options |= {"mean": MEAN, "std": STD}
    return photos, torch.stack(windows), options


def expect_float64(name, problem, dtype):
    """Of a backend: what the reference makes in float64, but for the rounding of its type."""
    photos, windows, options = problem
    photos = [photo.to(DEVICE) for photo in photos]
    bytes_ = dtype == torch.uint8
    if bytes_:
        options = {k: v for k, v in options.items() if k not in ("mean", "std")}
    with backend.force(name):
        found = fused_views(photos, windows, dtype=dtype, **options)
    with backend.force("torch"):
        exact = fused_views(photos, windows, dtype=torch.float64, **options)
    assert found.dtype == dtype
    if bytes_:
        assert (found.double() - 255 * exact).abs().max() <= 0.501
        return
    near = NEAR[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=near, atol=near)


NEAR = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@needs_c
@settings(max_examples=200, deadline=None)
@given(problems(), st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]))
def test_fuzz_equals_float64(problem, dtype):
    expect_float64("native", problem, dtype)


@settings(max_examples=200 if DEVICE == "cuda" else 4, deadline=None)
@given(problems(40 if DEVICE == "cuda" else 9), st.sampled_from([*NEAR, torch.uint8]))
def test_fuzz_of_triton_equals_float64(problem, dtype):
    expect_float64("triton", problem, dtype)


@pytest.mark.slow("triton")  # beside the fuzz of it
def test_windows_of_every_kind(backend_of_views, poisoned):
    """More than a tile of a view each way: mirrored, upside down, to its borders, of a pixel and
    less, larger and smaller than the view, of tall, wide and turned photographs."""
    generator = torch.Generator().manual_seed(0)
    shapes = (31, 3), (2, 40), (17, 19), (1, 1)
    photos = [torch.randint(256, (*n, 3), dtype=torch.uint8, generator=generator) for n in shapes]
    photos[2] = photos[2].flip(1).transpose(0, 1)
    windows = torch.tensor(
        [
            [0.0, 0, 31, 3], [31, 3, 0, 0], [30.25, 2.5, 31, 3], [0, 40, 2, 0], [1.5, 0.1, 1.6, 39],
            [0, 0, 19, 17], [3.3, 16.9, 18.2, 0.4], [7, 7, 8, 8], [0, 0, 1, 1], [0.9, 0.2, 0.1, 0.7]
        ]
    )  # fmt: skip
    count = len(windows)
    options = {
        "size": (9, 34),
        "photo": torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3, 3]),
        "color": torch.eye(3, 4) + 0.3 * torch.randn(count, 3, 4, generator=generator),
        "sigma": torch.tensor([0.0, 1.0, 1e-6, 0.0, 0.3, 0.0, 2.0, 0.7, 0.0, 7.0]),  # over 9, too
        "solarize": torch.arange(count) % 3 == 0,
        "mean": MEAN,
        "std": STD,
    }
    expect_float64(backend.forced, (photos, windows, options), torch.float32)


@needs_c
@pytest.mark.parametrize("height", [61, 150])
def test_native_keeps_few_rows_of_blurred_views(height):
    """Rows take the places of earlier ones; steps of 0.3 to 4 pixels, so 2 to 9 taps."""
    photo = torch.randint(256, (400, 300, 3), dtype=torch.uint8)
    windows = torch.tensor(
        [[0.0, 0, 400, 300], [390, 20, 7, 290], [100, 9, 140, 30], [3, 250, 399, 20]]
    )
    options = {"size": (height, 70), "photo": torch.zeros(4, dtype=torch.int64)}
    options["sigma"] = torch.tensor([2.0, 0.4, 1.0, 0.0])
    expect_float64("native", ([photo], windows, options), torch.float32)
    expect_float64("native", ([photo], windows, options), torch.uint8)


@needs_c
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_views_past_the_caches_are_the_same(monkeypatch, dtype):
    photo = torch.randint(256, (90, 200, 3), dtype=torch.uint8)
    windows = torch.tensor([[0.0, 0, 90, 200], [80, 150, 3, 20]])
    for size in (64, 37):
        options = {"size": size, "photo": torch.zeros(2, dtype=torch.int64), "dtype": dtype}
        with backend.force("native"):
            expected = fused_views([photo], windows, **options)
            monkeypatch.setattr(native, "STREAM_BYTES", 0)
            assert torch.equal(fused_views([photo], windows, **options), expected)
            monkeypatch.undo()


def test_a_long_photograph_is_sampled_where_it_should_be(backend_of_views):
    """Float32 would place samples at pixel 50,000 to 1/256 pixel."""
    photo = torch.randint(256, (2, 50_000, 3), dtype=torch.uint8, device=DEVICE)
    windows = torch.tensor([[0.0, 49_990.1, 2, 49_998.7], [0, 49_999.9, 2, 49_980.3]])
    options = {"size": (2, 40), "photo": torch.zeros(2, dtype=torch.int64)}
    expect_float64(backend.forced, ([photo], windows, options), torch.float32)


def test_rows_that_lie_far_apart(backend_of_views):
    """Two rows of 2^31 bytes, of which the memory is never touched between them."""
    pixels = torch.empty(2**31 + 15, dtype=torch.uint8, device=DEVICE)
    photo = pixels.as_strided((2, 5, 3), (2**31, 3, 1))
    photo.copy_(torch.arange(30).view(2, 5, 3))
    windows = torch.tensor([[0.0, 0, 2, 5]])
    views = fused_views([photo], windows, size=(2, 5), dtype=torch.uint8)
    assert torch.equal(views[0].permute(1, 2, 0), photo)


def test_a_resampled_axis_is_that_of_pytorchs_antialiasing():
    """Whole pixels: F.interpolate(antialias=True), whose support is the same triangle."""
    image = torch.rand(3, 29, 31, dtype=torch.float64)
    for size in ((7, 9), (29, 31), (40, 64)):
        zero = torch.zeros((), dtype=torch.float64)
        down = resample_matrix(zero, zero + 29, 29, size[0])
        across = resample_matrix(zero, zero + 31, 31, size[1])
        theirs = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        inside = slice(None), slice(1, -1), slice(1, -1)  # PyTorch leaves out what lies beyond
        torch.testing.assert_close((down @ image @ across.T)[inside], theirs[inside])
        torch.testing.assert_close(
            resample_matrix(zero + 29, zero, 29, size[0]), down.flip(0)
        )  # mirrored


@pytest.mark.slow("triton")
@pytest.mark.parametrize("size", [48, 224])
def test_equals_dalis_operators_within_a_grey_level(backend_of_views, size):
    """DALI rounds to bytes after each of them, ours once."""
    dali = pytest.importorskip("nvidia.dali")
    from PIL import Image

    from tests.support.runs import PHOTOS

    files = sorted(Path(PHOTOS).glob("*.jpg"))[:4]
    photos = [np.array(Image.open(f).convert("RGB").resize((300, 200))) for f in files]
    rng = np.random.default_rng(0)
    count = len(photos)
    start = rng.uniform(0, 0.4, (count, 2)).astype(np.float32)
    end = (start + rng.uniform(0.2, 0.6, (count, 2))).clip(0, 1).astype(np.float32)
    start[0, 1], end[0, 1] = end[0, 1], start[0, 1]
    factors = [rng.uniform(0.6, 1.4, count).astype(np.float32) for _ in range(3)]
    hue, sigma = (rng.uniform(*r, count).astype(np.float32) for r in ((-36, 36), (0.1, 2)))
    flags = np.arange(count) % 2 == 0
    given = [photos, start, end, *factors, hue, sigma]
    given.append((flags * np.uint8(255))[:, None, None, None])
    pipeline = dali.Pipeline(batch_size=count, num_threads=1, device_id=None)
    fn = dali.fn
    with pipeline:
        x, first, last, b, c, s, h, width, flag = fn.external_source(
            source=lambda: given, num_outputs=9, batch=True
        )
        x = fn.resize(
            x, roi_start=first, roi_end=last, size=[size, size], roi_relative=True, antialias=True
        )
        x = fn.color_twist(x, brightness=b, contrast=c, saturation=s, hue=h)
        x = fn.gaussian_blur(x, sigma=width)
        pipeline.set_outputs(x ^ ((x >= 128) * flag))
    pipeline.build()
    theirs = torch.from_numpy(pipeline.run()[0].as_array().copy())
    windows = torch.from_numpy(np.concatenate([start * (200, 300), end * (200, 300)], 1)).float()
    color = color_matrix(*(torch.from_numpy(v) for v in (*factors, hue / 360)))
    ours = fused_views(
        [torch.from_numpy(photo).to(DEVICE) for photo in photos],
        windows,
        size=size,
        color=color,
        sigma=torch.from_numpy(sigma),
        solarize=torch.from_numpy(flags),
        dtype=torch.uint8,
    )
    apart = (ours.cpu().permute(0, 2, 3, 1).int() - theirs.int()).abs()
    assert apart.max() <= 2  # its rounding after the colours is spread by the blur, or doubled
    assert (apart > 1).float().mean() < 1e-3


def two_photos():
    torch.manual_seed(0)
    return [torch.randint(0, 256, (14, 60, 3), dtype=torch.uint8).to(DEVICE) for _ in range(2)]


def call(dtype=torch.float32, views=5, photos=None):
    photos = photos or two_photos()
    torch.manual_seed(1)
    windows = torch.tensor([[3.0, 50.5, 12.2, 6.1]]).expand(views, 4) + torch.rand(views, 4)
    return fused_views(
        photos,
        windows,
        size=(9, 35),
        photo=torch.arange(views) % 2,
        color=torch.eye(3, 4).expand(views, 3, 4) * 0.8,
        sigma=torch.rand(views) * 2,
        solarize=torch.arange(views) % 2 == 0,
        dtype=dtype,
    )


@needs_c
def test_the_number_of_threads_does_not_change_a_bit():
    with backend.force("native"):
        expect_the_same_bits_of_any_threads(lambda: [call(), call(torch.uint8)])


@needs_c
@pytest.mark.parametrize("isa", list(toolchain.instruction_sets()))
def test_every_instruction_set_agrees(isa, monkeypatch):
    with backend.force("native"):
        expected = call()
        with instruction_set(isa, monkeypatch):
            torch.testing.assert_close(call(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow("triton")
def test_layout_types_and_no_views(backend_of_views):
    views = call(torch.uint8)
    assert views.shape == (5, 3, 9, 35)
    assert views.is_contiguous(memory_format=torch.channels_last)
    assert call().is_contiguous()
    assert call(torch.float64).dtype == torch.float64
    photo = torch.zeros(4, 5, 3, dtype=torch.uint8, device=DEVICE)
    for dtype in (torch.float32, torch.uint8):
        none = fused_views(
            [photo], torch.zeros(0, 4), size=8, photo=torch.zeros(0).int(), dtype=dtype
        )
        assert none.shape == (0, 3, 8, 8)
        assert none.device == photo.device
        assert none.dtype == dtype
    assert fused_views([], torch.zeros(0, 4), size=8).shape == (0, 3, 8, 8)


@pytest.mark.slow
def test_views_are_blurred_in_as_many_launches_as_memory_allows(monkeypatch):
    with backend.force("triton"):
        expected = call()
        monkeypatch.setattr(fused_views_triton, "_PLANES", 2 * 3 * 9 * 35)  # two views
        assert torch.equal(call(), expected)


def test_only_blurred_views_go_through_a_blur(monkeypatch):
    made, resample = [], fused_views_triton._resample
    monkeypatch.setattr(
        fused_views_triton,
        "_resample",
        lambda out, tables, *rest, **last: (
            made.append(tables.places[:, 4].tolist()),
            resample(out, tables, *rest, **last),
        ),
    )
    photo = torch.zeros(4, 5, 3, dtype=torch.uint8, device=DEVICE)
    windows = torch.tensor([[0.0, 0, 4, 5]]).expand(4, 4)
    given = {"size": 3, "photo": torch.zeros(4, dtype=torch.int64)}
    with backend.force("triton"):
        fused_views([photo], windows, sigma=torch.tensor([0.0, 1.0, 0.0, 0.5]), **given)
        fused_views([photo], windows, **given)
    assert made == [[0, 2], [1, 3], [0, 1, 2, 3]]


@pytest.mark.gpu
def test_nothing_waits_for_a_gpu():
    """Whose photographs are made into views as parameters on the CPU say."""
    photos = two_photos()
    expected = call(photos=photos)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = call(photos=photos)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, expected)


def test_parameters_may_lie_where_the_photographs_do(device, backend_of_views):
    photos = [torch.randint(0, 256, (6, 7, 3), dtype=torch.uint8).to(device)] * 2
    given = {
        "windows": torch.tensor([[0.5, 1.0, 5.0, 6.0]]).expand(2, 4),
        "photo": torch.tensor([1, 0]),
        "color": torch.eye(3, 4).expand(2, 3, 4),
        "sigma": torch.tensor([0.0, 1.0]),
        "solarize": torch.tensor([True, False]),
    }
    there = {name: value.to(device) for name, value in given.items()}
    assert torch.equal(fused_views(photos, size=9, **there), fused_views(photos, size=9, **given))


@pytest.mark.slow("triton")
def test_another_default_type_changes_nothing(backend_of_views):
    expected = call()
    torch.set_default_dtype(torch.float64)
    try:
        photo = (torch.arange(60) * 4).to(DEVICE, torch.uint8).view(4, 5, 3)
        windows = torch.tensor([[0.5, 4.5, 3.5, 0.25]], dtype=torch.float32)
        ours = fused_views([photo], windows, size=6, dtype=torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(ours, fused_views([photo], windows, size=6))
    assert torch.equal(call(), expected)


PHOTO = torch.zeros(4, 5, 3, dtype=torch.uint8)
WINDOW = torch.tensor([[0.0, 0.0, 4.0, 5.0]])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"photos": PHOTO[None]},
            TypeError,
            r"photos: expected a list of tensors \[H, W, C\], got one of \(1, 4, 5, 3\)",
        ),
        (
            {"photos": [PHOTO.double()]},
            TypeError,
            r"photos\[0\]: expected a tensor of uint8, uint16 or float32, got torch.float64",
        ),
        ({"photos": [PHOTO[0]]}, ValueError, r"photos\[0\]: expected \[H, W, C\], got"),
        ({"photos": [PHOTO, PHOTO]}, ValueError, "photo: needed where there are 2 photographs"),
        ({"photos": []}, ValueError, "photos: expected at least one for 1 windows, got none"),
        (
            {"photos": [PHOTO.permute(2, 0, 1).contiguous()], "windows": WINDOW},
            ValueError,
            r"within the photograph's \[3, 4\], got .* in row 0; photos are \[H, W, C\]",
        ),
        ({"photo": torch.tensor([1])}, ValueError, r"photo: expected 0 \.\. 0, got 1 \.\. 1"),
        ({"photo": torch.tensor([0, 0])}, ValueError, r"photo: expected \[1\] as windows"),
        ({"photo": torch.tensor([0.0])}, TypeError, "photo: expected integers"),
        ({"windows": WINDOW[0]}, ValueError, r"windows: expected \[V, 4\], got \(4,\)"),
        ({"windows": WINDOW * 1.1}, ValueError, r"windows: .* within the photograph's \[4"),
        ({"windows": WINDOW * torch.nan}, ValueError, "windows: .* in row 0"),
        ({"windows": WINDOW * torch.tensor([1, 0, 1, 0.0])}, ValueError, "an empty one"),
        ({"size": 0}, ValueError, "size: "),
        ({"color": torch.zeros(1, 3, 3)}, ValueError, r"color: expected \[1, 3, 4\], got"),
        (
            {"color": torch.full((1, 3, 4), torch.inf)},
            ValueError,
            r"color: expected numbers up to 1e\+06",
        ),
        ({"color": torch.full((1, 3, 4), torch.nan)}, ValueError, "color: expected numbers"),
        (
            {"photos": [PHOTO.to("meta")]},
            ValueError,
            r"photos\[0\]: expected pixels in memory, got a tensor on meta",
        ),
        ({"windows": WINDOW.to("meta")}, ValueError, "windows: expected on cpu, got meta"),
        ({"sigma": torch.zeros(1, device="meta")}, ValueError, "sigma: expected on cpu, got meta"),
        ({"sigma": torch.tensor([65.0])}, ValueError, r"sigma: expected values in 0\.\.64 pixels"),
        ({"sigma": torch.tensor([torch.nan])}, ValueError, "sigma: "),
        ({"sigma": torch.zeros(2)}, ValueError, r"sigma: expected \[1\], got \(2,\)"),
        ({"solarize": torch.zeros(1)}, TypeError, "solarize: expected a bool tensor, got torch.f"),
        ({"mean": 0.5}, ValueError, "mean, std: expected both or neither"),
        ({"dtype": torch.int8}, TypeError, "dtype: expected uint8, uint16 or a floating"),
        ({"dtype": torch.uint8, "mean": 0.5, "std": 0.5}, ValueError, "dtype: uint8 cannot hold"),
    ],
)
def test_bad_input_names_the_argument(change, error, message):
    given = {"photos": [PHOTO], "windows": WINDOW, "size": 8, **change}
    photos, windows = given.pop("photos"), given.pop("windows")
    with pytest.raises(error, match=message):
        fused_views(photos, windows, **given)


def test_windows_are_checked_as_they_are_read():
    """In float32, whatever type they came in."""
    tall = torch.zeros(4010, 3, 3, dtype=torch.uint8)
    window = torch.tensor([[0.0, 0, 4016, 3]])
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        with pytest.raises(ValueError, match="within the photograph's"):
            fused_views([tall], window.to(dtype), size=4)
    thin = torch.tensor([[0.0, 0, 1e-12, 3]], dtype=torch.float64) + 2
    with pytest.raises(ValueError, match="an empty one"):
        fused_views([torch.zeros(8, 8, 3, dtype=torch.uint8)], thin, size=4)


@needs_c
def test_weights_of_both_axes_take_memory_of_their_own():
    """A tall photograph to a wide view: not the longest side times the most taps."""
    from bench.memory import peak_extra_bytes

    tall, window = torch.zeros(10_000, 4, 3, dtype=torch.uint8), torch.tensor([[0.0, 0, 10_000, 4]])
    peak = peak_extra_bytes(lambda: fused_views([tall], window, size=(1, 4096)), "cpu")
    if peak is None:
        pytest.skip("the kernel's high-water mark cannot be reset here")
    assert peak < 20e6


@needs_c
def test_views_of_signs_turned_by_a_view():
    photo = torch.randint(0, 256, (6, 7, 3), dtype=torch.uint8)
    windows, sigma = torch.tensor([[0.5, 1.0, 5.0, 6.0]]), torch.tensor([0.8])
    turned = torch._neg_view(-windows), torch._neg_view(-sigma)
    place = torch._neg_view(torch.tensor([-1]))
    with backend.force("native"):
        expected = fused_views([photo], windows, size=9, sigma=sigma)
        assert torch.equal(fused_views([photo], turned[0], size=9, sigma=turned[1]), expected)
        found = fused_views([photo, photo], turned[0], size=9, sigma=turned[1], photo=place)
        assert torch.equal(found, expected)


def test_under_transforms_as_outside():
    """Whose tensors have no memory: neither those given nor what is made of them."""
    photos, leaf = two_photos(), torch.tensor(2.0)
    windows = torch.tensor([[0.5, 1.0, 5.0, 6.0], [1.0, 5.0, 4.0, 0.0]])
    given = {"photo": torch.tensor([1, 0]), "sigma": torch.tensor([0.0, 0.8])}
    given["gain"] = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(0))
    expected = fused_views(photos, windows, size=9, **given).sum()

    def of_leaf(leaf, **changed):
        return leaf * fused_views(photos, windows, size=9, **{**given, **changed}).sum()

    def of_windows(windows):
        return leaf * fused_views(photos, windows, size=9, **given).sum()

    where = {
        "grad": torch.func.grad(of_leaf)(leaf),
        "jvp": torch.func.jvp(of_leaf, (leaf,), (torch.tensor(1.0),))[1],
        "jacrev": torch.func.jacrev(of_leaf)(leaf),
        "functionalize": torch.func.functionalize(of_leaf)(leaf) / leaf,
        "vmap": torch.func.vmap(of_leaf)(leaf[None])[0] / leaf,
        "vjp of windows": torch.func.vjp(of_windows, windows)[0] / leaf,
        "functionalize of windows": torch.func.functionalize(of_windows)(windows) / leaf,
    }
    for name, found in where.items():
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0, msg=name)
    wrong = {"color": torch.full((2, 3, 4), torch.nan)}
    for transform in (torch.func.grad, torch.func.functionalize):
        with pytest.raises(ValueError, match="color: expected numbers up to"):
            transform(lambda leaf: of_leaf(leaf, **wrong))(leaf)
        with pytest.raises(ValueError, match=r"photo: expected 0 \.\. 1, got 0 \.\. 2"):
            transform(lambda leaf: of_leaf(leaf, photo=torch.tensor([0, 2])))(leaf)


def test_sigma_is_checked_under_transforms_too():
    photos, windows = two_photos(), torch.tensor([[0.5, 1.0, 5.0, 6.0]] * 2)
    for sigma in (torch.nan, -1.0, 65.0, torch.inf):
        wrong = torch.tensor([0.5, sigma])

        def call(leaf, wrong=wrong):
            return leaf * fused_views(photos, windows, size=9, sigma=wrong).sum()

        for way in (lambda f: f, torch.func.grad, torch.func.functionalize):
            with pytest.raises(
                ValueError, match=rf"sigma: .* 0\.\.64 pixels, got {sigma:g} in row 1"
            ):
                way(call)(torch.tensor(1.0))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_functions_call_it_as_it_is(backend):
    """Its parameters' values decide what runs: it is not traced, within transforms neither."""
    photos, windows = two_photos(), torch.tensor([[0.5, 1.0, 5.0, 6.0], [1.0, 5.0, 4.0, 0.0]])
    place, leaf = torch.tensor([1, 0]), torch.tensor(1.0)
    expected = fused_views(photos, windows, size=9, photo=place)

    def views(windows, **options):
        return fused_views(photos, windows, size=9, photo=place, **options)

    def scaled(leaf):
        return leaf * views(windows).sum()

    compiled = partial(torch.compile, backend=backend)
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    assert torch.equal(compiled(views)(windows), expected)
    close(torch.func.grad(compiled(scaled))(leaf), expected.sum())
    close(compiled(torch.func.grad(scaled))(leaf), expected.sum())
    close(compiled(lambda w: torch.func.jvp(views, (w,), (w,))[0])(windows), expected)
    close(torch.func.functionalize(compiled(views))(windows), expected)
    with pytest.raises(ValueError, match="sigma: expected values"):
        compiled(lambda w: views(w, sigma=torch.full((2,), torch.nan)))(windows)


def test_autocast_changes_nothing_in_pytorch():
    photos, windows = two_photos(), torch.tensor([[0.5, 1.0, 5.0, 6.0], [1.0, 5.0, 4.0, 0.0]])
    with backend.force("torch"):
        expected = fused_views(photos, windows, size=9)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            assert torch.equal(fused_views(photos, windows, size=9), expected)


def test_tensors_without_values_are_refused_by_name():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as fake:
        photo, windows = fake.from_tensor(two_photos()[0]), fake.from_tensor(torch.zeros(1, 4))
        with pytest.raises(ValueError, match="windows: expected values that can be read"):
            fused_views([photo], windows, size=9)
