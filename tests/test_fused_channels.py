"""Views of images with any channels and depths in one pass: against float64, any build."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastequi import fused_views
from fastequi.kernels import backend, native, toolchain
from tests.support.native import expect_the_same_bits_of_any_threads, instruction_set

needs_c = pytest.mark.skipif(native.obstacle() is not None, reason="no C kernels")
MOST = {torch.uint8: 255.0, torch.uint16: 65535.0, torch.float32: 1.0}
NEAR = {torch.float32: 3e-5, torch.bfloat16: 1e-2}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of the images
NAMES = ["torch", pytest.param("native", marks=needs_c), "triton"]


def on(name, image):
    """Where a backend runs."""
    return image.to(DEVICE) if name == "triton" else image


def values(dtype, shape, draw):
    unit = torch.rand(shape, generator=draw)
    if dtype == torch.float32:
        return unit * 9 - 4
    return torch.from_numpy((unit * MOST[dtype]).numpy().astype(str(dtype)[6:]))


@st.composite
def problems(draw, most=40):
    """A random call on images of 1 to 40 channels."""
    seed = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from(list(MOST)))
    stored = draw(st.sampled_from([1, 2, 3, 4, 5, 12, 16, 17, 40]))
    side, images = st.integers(1, min(most, 30)), []
    for _ in range(draw(st.integers(1, 2))):
        height, width = draw(side), draw(side)
        image = values(dtype, (height, width + 2, stored), seed)[:, 1 : 1 + width]
        images.append(image.transpose(0, 1) if draw(st.booleans()) else image)
    count = draw(st.integers(1, 4))
    photo = torch.randint(0, len(images), (count,), generator=seed)
    sides = torch.tensor([images[i].shape[:2] for i in photo]).repeat(1, 2)
    windows = torch.rand(count, 4, generator=seed) * sides
    windows = torch.where(
        windows.roll(2, 1) == windows, sides * torch.tensor([0, 0, 1, 1]), windows
    )
    options = {"size": (draw(st.integers(1, most)), draw(st.integers(1, most))), "photo": photo}
    if draw(st.booleans()):
        taken = draw(st.lists(st.integers(0, stored - 1), min_size=1, max_size=20))
        options["channels"] = taken
    taken = options.get("channels", range(stored))
    if dtype == torch.float32 or draw(st.booleans()):
        low = torch.rand(len(taken), generator=seed) * 0.4 * MOST[dtype]
        high = low + (0.1 + torch.rand(len(taken), generator=seed)) * MOST[dtype]
        pairs = list(zip(low.tolist(), high.tolist(), strict=True))
        options["value_range"] = pairs if draw(st.booleans()) else pairs[0]
    if len(taken) == 3 and draw(st.booleans()):
        noise = torch.randn(count, 3, 4, generator=seed)
        options["color"] = torch.eye(3, 4) + 0.3 * noise
    if draw(st.booleans()):
        gain = torch.rand(count, len(taken), draw(st.sampled_from([2, 3])), generator=seed)
        options["gain"] = gain + 0.25
    if draw(st.booleans()):
        options["sigma"] = 3 * torch.rand(count, generator=seed)
    if draw(st.booleans()):
        options["solarize"] = torch.rand(count, generator=seed) < 0.5
    if draw(st.booleans()):
        options |= {"mean": [0.4] * len(taken), "std": [0.3] * len(taken)}
    return images, windows, options


@needs_c
@settings(max_examples=300, deadline=None)
@given(problems(), st.sampled_from([*NEAR, torch.uint8, torch.uint16]))
def test_fuzz_of_channels_equals_float64(problem, dtype):
    expect_float64("native", problem, dtype)


@settings(max_examples=300 if DEVICE == "cuda" else 4, deadline=None)
@given(problems(30 if DEVICE == "cuda" else 8), st.sampled_from([*NEAR, torch.uint8, torch.uint16]))
def test_fuzz_of_channels_in_triton_equals_float64(problem, dtype):
    expect_float64("triton", problem, dtype)


def expect_float64(name, problem, dtype):
    """Of a backend: what the reference makes in float64, but for the rounding of its type."""
    images, windows, options = problem
    images = [image.to(DEVICE) for image in images]
    if dtype in (torch.uint8, torch.uint16):
        options = {k: v for k, v in options.items() if k not in ("mean", "std")}
    with backend.force(name):
        found = fused_views(images, windows, dtype=dtype, **options)
    with backend.force("torch"):
        exact = fused_views(images, windows, dtype=torch.float64, **options)
        plain = fused_views(images, windows, dtype=dtype, **options)
    assert found.dtype == dtype
    for form in (torch.contiguous_format, torch.channels_last):  # strides of one pixel say nothing
        assert found.is_contiguous(memory_format=form) == plain.is_contiguous(memory_format=form)
    flipped = 0  # values at one half that are inverted in one of both
    for made in (found, plain):
        if dtype in (torch.uint8, torch.uint16):
            off = (made.double() - MOST[dtype] * exact).abs()
            near = 0.501 if dtype == torch.uint8 else 2.5
        else:
            off, near = (made.double() - exact).abs() / (1 + exact.abs()), NEAR[dtype]
        flipped = max(flipped, int((off > near).sum()))
    allowed = 0 if "solarize" not in options else 2
    assert flipped <= allowed


def test_what_the_numbers_mean():
    """By hand: a pixel's value, range, gain, offset and exponent, of the channels asked for."""
    image = torch.tensor([[[100, 2000, 30]]]).to(torch.uint16).expand(4, 4, 3)
    gain = torch.tensor([[[2.0, 0.1, 1.0], [1.0, 0.0, 2.0]]])
    found = fused_views(
        [image],
        torch.tensor([[0.0, 0, 4, 4]]),
        size=2,
        channels=np.array([1, 0]),
        value_range=[(0, 10_000), (50, 150)],
        gain=gain,
    )
    assert found.shape == (1, 2, 2, 2)
    torch.testing.assert_close(found[0, 0], torch.full((2, 2), 0.2 * 2 + 0.1))
    torch.testing.assert_close(found[0, 1], torch.full((2, 2), 0.5**2))
    whole = fused_views([image], torch.tensor([[0.0, 0, 4, 4]]), size=2, dtype=torch.uint16)
    assert whole[0, :, 0, 0].tolist() == [100, 2000, 30]


@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", list(MOST))
@pytest.mark.parametrize("taken", [None, (2, 0), (0, 2, 1)])
def test_what_is_outside_the_range_is_cut_off_before_values_are_resampled(taken, dtype, name):
    """Averages of 50 and of what is far above become those of 50 and 100, not all 100."""
    part = MOST[dtype] / 255
    image = torch.full((16, 32, 3), 50 * part).double()
    image[:, ::2] = torch.tensor([255.0, 0.0, 255.0]).double() * part
    image = image.to(dtype) if dtype != torch.uint16 else image.int().to(dtype)
    window = torch.tensor([[0.0, 0, 16, 32]])
    options = {} if taken is None else {"channels": taken}
    with backend.force(name):
        found = fused_views(
            [on(name, image)], window, size=(4, 4), value_range=(20 * part, 100 * part), **options
        ).cpu()
    ends = torch.tensor([(1 + 3 / 8) / 2, 3 / 16, (1 + 3 / 8) / 2])
    expected = ends if taken is None else ends[list(taken)]
    middle = found[0, :, 1:3, 1:3].mean((1, 2))
    torch.testing.assert_close(middle, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (1e6, 1e6 + 10, torch.float32),
        (1e6 + 0.1, 1e6 + 0.9, torch.float32),  # ends that float32 does not hold
        (0.1, 0.1 + 1e-6, torch.float32),
        (6e4, 6e4 + 10, torch.uint16),
    ],
)
def test_a_narrow_range_far_from_0_keeps_its_digits(low, high, dtype, name):
    """Sums of values near 1e6 have none left for a tenth."""
    generator = torch.Generator().manual_seed(0)
    values = low + (high - low) * torch.rand(40, 50, 2, generator=generator, dtype=torch.float64)
    image = values.to(dtype) if dtype != torch.uint16 else values.int().to(dtype)
    window = torch.tensor([[1.3, 2.0, 38.6, 49.1]])
    with backend.force(name):
        found = fused_views([on(name, image)], window, size=31, value_range=(low, high)).cpu()
    with backend.force("torch"):
        exact = fused_views([image], window, size=31, value_range=(low, high), dtype=torch.float64)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_channels_come_in_the_order_that_is_asked_for(name):
    """Every choice of as many as there are, those too that begin and end as all of them do; of
    Triton's interpreter every 57th.
    """
    window = torch.tensor([[0.0, 0, 4, 4]])
    step = 57 if name == "triton" and DEVICE == "cpu" else 1
    for stored in (3, 4):
        image = torch.arange(stored, dtype=torch.uint8).mul(10).expand(4, 4, stored).contiguous()
        image = on(name, image)
        for taken in list(itertools.product(range(stored), repeat=stored))[::step]:
            with backend.force(name):
                found = fused_views([image], window, size=1, channels=taken, dtype=torch.uint8)
            assert found.flatten().tolist() == [10 * c for c in taken]


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_row_of_more_values_than_32_bits_count(name):
    """Of memory that is never touched but for two pixels."""
    channels = 2**20
    image = torch.empty(2049 * channels, dtype=torch.uint8, device=on(name, IMAGE).device)
    image = image.view(1, 2049, channels)
    image[0, 2040, 0], image[0, 2048, 0] = 100, 200
    for x, value in ((2040, 100), (2048, 200)):
        window = torch.tensor([[0.0, x, 1, x + 1]])
        with backend.force(name):
            found = fused_views([image], window, size=1, channels=(0,), dtype=torch.uint8)
        assert found.item() == value


@pytest.mark.parametrize("name", NAMES[1:])
def test_what_is_no_number_stays_where_it_is(name):
    image = torch.full((8, 8, 2), 0.5)
    image[3, 4, 1] = torch.nan
    given = [on(name, image)], torch.tensor([[0.0, 0, 8, 8]])
    options = {"size": 8, "gain": torch.tensor([[[0.9, 0.1, 1.0], [0.9, 0.1, 0.5]]])}
    with backend.force(name):
        found = fused_views(*given, **options).cpu()
        whole = fused_views(*given, dtype=torch.uint16, **options).cpu()
    near = torch.zeros_like(found, dtype=torch.bool)
    near[0, 1, 2:5, 3:6] = True  # a neighbour takes no part of it, but 0 times, or is not asked
    assert found[0, 1, 3, 4].isnan()
    assert not found[~near].isnan().any()
    assert torch.equal(whole == 0, found.isnan())


def test_three_bytes_with_their_own_range_are_those_without():
    """Of RGB the values stay 0 .. 255 on the way; the same but for rounding."""
    photo = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    given = [photo], torch.tensor([[1.0, 25, 19, 2]])
    options = {"size": 16, "sigma": torch.tensor([0.9]), "color": 0.9 * torch.eye(3, 4)[None]}
    expected = fused_views(*given, **options)
    torch.testing.assert_close(
        fused_views(*given, value_range=(0, 255), **options), expected, rtol=1e-5, atol=1e-5
    )


@needs_c
@pytest.mark.parametrize("isa", list(toolchain.instruction_sets()))
def test_every_instruction_set_agrees_on_channels(isa, monkeypatch):
    draw = torch.Generator().manual_seed(1)
    image = values(torch.uint16, (40, 50, 20), draw)
    options = {"size": 33, "gain": torch.rand(1, 20, 3, generator=draw) + 0.5}
    options["sigma"] = torch.tensor([1.3])

    def call():
        return fused_views([image], torch.tensor([[0.5, 49, 39.5, 2]]), **options)

    with backend.force("torch"):
        expected = call()
    with backend.force("native"), instruction_set(isa, monkeypatch):
        torch.testing.assert_close(call(), expected, rtol=3e-5, atol=3e-5)
        expect_the_same_bits_of_any_threads(lambda: [call()])


IMAGE = torch.zeros(4, 5, 2, dtype=torch.uint16)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"channels": [2]}, ValueError, r"channels: expected 0 \.\. 1, got \[2\]"),
        ({"channels": []}, TypeError, "channels: expected numbers of channels"),
        ({"channels": "01"}, TypeError, "channels: expected numbers of channels"),
        ({"color": torch.zeros(1, 3, 4)}, ValueError, "color: expected three channels, got 2"),
        ({"value_range": 3}, TypeError, "value_range: expected"),
        ({"value_range": (1, 1)}, ValueError, "value_range: expected low < high within"),
        ({"value_range": (0, 1e-39)}, ValueError, "value_range: expected low < high within"),
        ({"value_range": (1e8 + 1, 1e8 + 2)}, ValueError, "1e-30 apart and in float32 too, got"),
        ({"value_range": (-1e31, 0)}, ValueError, "value_range: expected low < high within"),
        ({"value_range": [(0, 1)] * 3}, ValueError, "value_range: expected 1 or 2 pairs, got 3"),
        ({"value_range": (0, torch.inf)}, ValueError, "value_range: expected low < high"),
        ({"gain": torch.zeros(1, 2, 4)}, ValueError, r"gain: expected \[1, 2, 2\] or"),
        ({"gain": torch.zeros(1, 2, 3)}, ValueError, "gain: expected exponents of 1/64 to 64"),
        ({"gain": torch.full((1, 2, 2), torch.nan)}, ValueError, "gain: expected numbers up to"),
        ({"photos": [IMAGE, IMAGE[..., :1]]}, ValueError, r"photos\[1\]: expected 2 channels of"),
        ({"mean": [0.5] * 3, "std": 0.5}, ValueError, "mean"),
        ({"dtype": torch.uint16, "mean": 0.5, "std": 0.5}, ValueError, "dtype: uint16 cannot hold"),
    ],
)
def test_bad_input_names_the_argument(change, error, message):
    given = {"photos": [IMAGE], "windows": torch.tensor([[0.0, 0, 4, 5]]), "size": 8, **change}
    photos, windows = given.pop("photos"), given.pop("windows")
    with pytest.raises(error, match=message):
        fused_views(photos, windows, **given)
