"""The options that a scan prints run as they stand; where there are none it says so in words."""

import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("nvidia.dali")

from fastequi.cli import commands
from fastequi.data.config import DataConfig
from fastequi.data.settling import settled, wanted
from fastequi.data.sources.image_sets import open_source
from tests.support import science
from tests.support.science import values


def filled(i):
    array = values(2, "float32", i)
    array[:5] = (-9999, -3.4e38)[i % 2]
    return science.npy(array)


def with_constants(i):
    array = values(4, "uint16", i)
    array[..., [1, 3]] = 65535
    return science.tiff_of(array)


def sparse(i):
    array = values(2, "uint16", i)
    array[..., 1] = 0
    array[0, 0, 1] = 7 * (i == 3)
    return science.tiff_of(array)


def rgba(i):
    array = values(4, "uint16", i)
    array[..., 3] = 65535
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"], "planarconfig": "contig"}
    return science.tiff_of(array, **options)


MADE = {  # of a set: its extension, what is in image i, what a scan says of a run's options
    "fill values": ("npy", filled, "--data.channels all --data.value-range percentiles:25:99.9"),
    "constants": ("tif", with_constants, "--data.channels 0,2 --data.value-range percentiles"),
    "sparse": ("tif", sparse, "--data.channels all --data.value-range percentiles:0:100"),
    "RGBA": ("tif", rgba, "--data.channels 0,1,2"),
    "mixed": (
        "png",
        lambda i: science.png(values(1, ("uint8", "uint16")[i % 2], i)),
        "--data.channels all --data.mean",
    ),
    "three pages": (
        "tif",
        lambda i: science.tiff_of(values(3, "uint8", i)),
        "--data.channels all --data.value-range percentiles",
    ),
    "plain": (
        "tif",
        lambda i: science.tiff_of(values(2, "uint16", i)),
        "--data.channels all --data.value-range percentiles",
    ),
}


def scanned(folder, name, capsys, count=12):
    """The options that a scan prints."""
    extension, write, _ = MADE[name]
    for i in range(count):
        (folder / f"{i:02}.{extension}").write_bytes(write(i))
    commands.data(["scan", str(folder)])
    said = capsys.readouterr().out
    return [line.split(" (")[0].strip() for line in said.splitlines() if line.startswith("  --")]


def taken(folder, line):
    """The settings of a run with these options, once its images are opened."""
    found = {}
    for name, value in re.findall(r"--data\.(\S+) (\S+(?: [\d.]\S*)*)", line):
        is_number = name in ("mean", "std")
        key = name.replace("-", "_")
        found[key] = tuple(map(float, value.split())) if is_number else value
    cfg = replace(DataConfig(), **found)
    return settled(cfg, open_source(folder, wanted=wanted(cfg)))


@pytest.mark.parametrize("name", MADE)
def test_the_options_of_a_scan_run(name, tmp_path, capsys):
    lines = scanned(tmp_path, name, capsys)
    assert any(line.startswith(MADE[name][2]) for line in lines), lines
    for line in lines:
        found = taken(tmp_path, line)
        assert len(found.mean) == len(found.std) == found.in_chans
        assert min(found.std) > 0
    if name == "RGBA":
        default = DataConfig()
        assert (found.mean, found.std) != (default.mean, default.std)  # of "all", by percentiles
        colours = taken(tmp_path, lines[0])
        assert (colours.mean, colours.std) == (default.mean, default.std)


def test_depths_that_are_mixed_are_normalised_together(tmp_path, capsys):
    (line,) = scanned(tmp_path, "mixed", capsys)
    found = taken(tmp_path, line)
    whole = [values(1, ("uint8", "uint16")[i % 2], i) for i in range(12)]
    unit = np.concatenate([(each / np.iinfo(each.dtype).max).reshape(-1) for each in whole])
    assert found.mean[0] == pytest.approx(unit.mean(), abs=1e-3)
    assert found.std[0] == pytest.approx(unit.std(), abs=1e-3)
    said = (
        r"1 channel of uint8, but data\.value_range is in the numbers of one depth, uint16 \(as "
        r"many have another\); data\.value_range=dtype takes several"
    )
    with pytest.raises(ValueError, match=said):
        taken(tmp_path, "--data.channels all --data.value-range percentiles")


def test_missing_values_are_no_end_of_a_range(tmp_path, capsys):
    scanned(tmp_path, "fill values", capsys)
    said = "the percentiles 0.1 and 99.9; where an end is no measured value, as of missing ones"
    with pytest.raises(ValueError, match=said):
        taken(tmp_path, "--data.channels all --data.value-range percentiles")


def test_where_nothing_runs_it_is_said_in_words(tmp_path, capsys):
    for i in range(4):
        (tmp_path / f"{i}.tif").write_bytes(science.tiff_of(np.full((20, 20, 2), 9, np.uint16)))
    commands.data(["scan", str(tmp_path)])
    said = capsys.readouterr().out
    assert "nearly all values are one" in said
    assert "--data." not in said
    for i in range(2):
        (tmp_path / f"{i}.tif").write_bytes(science.tiff_of(values(2, "uint16", i)))
        (tmp_path / f"{i + 2}.tif").write_bytes(science.tiff_of(values(5, "uint16", i)))
    commands.data(["scan", str(tmp_path)])
    said = capsys.readouterr().out
    assert "several numbers of channels a run takes those that most have: --exclude" in said
    assert "--data." not in said


def test_numbers_for_other_channels_than_there_are_name_their_setting(tmp_path):
    (tmp_path / "0.tif").write_bytes(science.tiff_of(values(1, "uint16")))
    for given, said in (
        ("--data.mean .5 .4 --data.std .1 .2", r"data\.mean: expected 1 value, one for each of"),
        (
            "--data.value-range 0:1,2:3",
            r"data\.value_range: expected one LOW:HIGH for all channels, got 0:1,2:3",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            taken(tmp_path, f"--data.channels all {given}")


def test_a_warning_of_a_range_counts_the_channels(tmp_path, caplog):
    for i in range(3):
        array = values(3, "uint16", i)
        array[..., 1:] //= 512
        (tmp_path / f"{i}.tif").write_bytes(science.tiff_of(array))
    commands.data(["scan", str(tmp_path)])
    taken(tmp_path, "--data.channels all")
    assert (
        "% of 0:65535 (and the like of 1 more of 3 channels); data.value_range=perc" in caplog.text
    )
