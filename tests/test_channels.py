"""The words of data.channels and data.value_range."""

from dataclasses import replace

import pytest

from fastequi.cli import commands
from fastequi.data.channels import chosen, percentiles, plain, ranges, written
from fastequi.data.config import Augment, DataConfig
from fastequi.data.settling import settled, wanted
from fastequi.data.sources.image_sets import open_source
from tests.support import science
from tests.support.science import values


def test_channels_are_read_and_written():
    assert chosen("rgb") is chosen("all") is None
    assert chosen("0,3,11") == chosen(" 0, 3 ,11 ") == (0, 3, 11)
    assert chosen(" all") is None
    two = DataConfig(channels=" 0, 3", value_range="0 : 9, 1:8", mean=(0, 0), std=(1, 1))
    assert (two.channels, two.value_range) == ("0,3", "0:9,1:8")  # as resumed
    assert ranges(" 0 : 9") == ((0.0, 9.0),)
    assert percentiles("percentiles : 1 : 99") == (1.0, 99.0)
    assert len(plain("0" + " " * 300_000 + "1")) == 300_002  # at once
    with pytest.raises(ValueError, match="value_range: expected text, got 5"):
        DataConfig(value_range=5)
    assert written((0, 3, 11)) == "0,3,11"
    for text in ("٣", "", "0,", "1 2", "-1", "0,0", ",".join(map(str, range(1025)))):
        with pytest.raises(ValueError, match="channels: expected"):
            chosen(text)


def test_ranges_are_read():
    assert ranges("dtype") is ranges("percentiles") is ranges("percentiles:1:99") is None
    assert ranges("0:4095") == ((0.0, 4095.0),)
    assert ranges("0:4095,-1.5:2e3") == ((0.0, 4095.0), (-1.5, 2000.0))
    assert percentiles("percentiles") == (0.1, 99.9)
    assert percentiles("percentiles:2:97.5") == (2.0, 97.5)
    assert percentiles("0:1") is None
    for text in (
        "",
        "1:1",
        "2:1",
        "0:nan",
        "0:inf",
        "1",
        "1:2:3",
        "a:b",
        "percentiles:3",
        "16777216:16777217",
        "0:1e-46",
        "-3e38:3e38",
        "0:1e39",
        "-1e31:1",
        "-3.4e38:1",
    ):
        with pytest.raises(ValueError, match="value_range: expected"):
            ranges(text)


def test_settings_know_how_many_channels_there_are():
    assert DataConfig().in_chans == 3
    some = DataConfig(channels="4,1", mean=(0.5, 0.5), std=(0.1, 0.2), value_range="0:9,0:8")
    assert some.in_chans == 2
    assert not some.is_rgb
    with pytest.raises(ValueError, match=r"channels: expected rgb or numbers where no images"):
        _ = DataConfig(channels="all").in_chans
    for change, message in (
        ({"mean": (0.1,)}, "mean: expected 2 values"),
        (
            {"value_range": "0:1,0:1,0:1"},
            "value_range: expected one LOW:HIGH for all channels or 2, one for each of channels=4",
        ),
        (
            {"channels": "4", "mean": (0.5,), "std": (0.1,)},
            "value_range: expected one LOW:HIGH for all channels, got 0:9,0:8",
        ),
        ({"channels": "rgb", "mean": (0.5,) * 3, "std": (0.2,) * 3}, "value_range: expected dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(some, **change)


def test_settings_of_a_channel_are_checked():
    for name, value in (("gain", -1), ("offset", float("inf")), ("gamma", -0.1), ("noise", -1)):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            Augment(**{name: value})
    with pytest.raises(ValueError, match="drop: expected a probability"):
        Augment(drop=1.5)
    assert Augment(noise=0.1, drop=0.1).plain().noise == Augment(drop=0.1).plain().drop == 0


def test_a_range_that_holds_no_value_of_the_images_is_refused(tmp_path):
    arrays = [9 + values(2, "float32", i) for i in range(3)]
    science.write(tmp_path, {f"{i}.npy": science.npy(array) for i, array in enumerate(arrays)})
    commands.data(["scan", str(tmp_path)])
    cfg = DataConfig(channels="all", mean=(0.5, 0.5), std=(0.2, 0.2))
    source = open_source(tmp_path, wanted=wanted(cfg))
    said = "expected one that holds values of the images, got 0:1, outside of which all of them lie"
    with pytest.raises(ValueError, match=said):
        settled(cfg, source)
    begun = replace(cfg, file_channels=2, file_depth="float32")
    assert settled(begun, source).value_range == "dtype"  # as it was begun


@pytest.mark.parametrize(
    ("name", "value"), [("mean", (586.0,)), ("mean", (-0.1,)), ("std", (1517.0,)), ("std", (0.0,))]
)
def test_means_and_deviations_are_of_0_to_1(name, value):
    given = {"mean": (0.5,), "std": (0.2,), name: value}
    with pytest.raises(ValueError, match=f"{name}: expected"):
        DataConfig(channels="0", value_range="0:4095", **given)
