"""What headers say of channels, depth and RGB, and which images a run takes by that."""

import io
import logging
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image

from fastequi.cli import commands
from fastequi.data.sources.encoded import header
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.kinds import DEPTHS, NO_RGB, RGB8, Kind, counts
from fastequi.data.sources.wanted import Wanted
from fastequi.data.values import decoded
from tests.support import science
from tests.support.science import values
from tests.support.shards import tar


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


COLOURS = Image.fromarray(values(3, "uint8"))
GREY = COLOURS.convert("L")
CASES = {
    "rgb.jpg": (saved(COLOURS, "JPEG"), RGB8),
    "grey.jpg": (saved(GREY, "JPEG"), Kind(1)),
    "cmyk.jpg": (saved(COLOURS.convert("CMYK"), "JPEG"), RGB8),
    "rgb.png": (saved(COLOURS, "PNG"), RGB8),
    "palette.png": (saved(COLOURS.quantize(7), "PNG"), RGB8),
    "alpha.png": (saved(COLOURS.convert("RGBA"), "PNG"), Kind(4, "uint8", True)),
    "grey alpha.png": (saved(COLOURS.convert("LA"), "PNG"), Kind(2)),
    "two.png": (saved(COLOURS.convert("1"), "PNG"), Kind(1)),
    "grey 16.png": (science.png(values(1, "uint16")), Kind(1, "uint16")),
    "rgb.bmp": (saved(COLOURS, "BMP"), RGB8),
    "rgb.webp": (saved(COLOURS, "WEBP"), RGB8),
    "grey.pgm": (saved(GREY, "PPM"), Kind(1)),
    "deep.pgm": (b"P5\n2 3\n4095\n" + bytes(12), Kind(1, "uint16")),
    "rgb.tif": (saved(COLOURS, "TIFF"), RGB8),
    "palette.tif": (saved(COLOURS.quantize(7), "TIFF"), RGB8),
    "bits.tif": (saved(COLOURS.convert("1"), "TIFF"), Kind(1)),
    "float.tif": (saved(GREY.convert("F"), "TIFF"), Kind(1, "float32")),
    "twelve.tif": (science.plain_tiff(values(12, "uint16")), Kind(12, "uint16")),
    "five.tif": (science.plain_tiff(values(5, "float32")), Kind(5, "float32")),
    "grey.npy": (science.npy(values(1, "uint16")[..., 0]), Kind(1, "uint16")),
    "nine.npy": (science.npy(values(9, "uint8")), Kind(9)),
    "big endian.npy": (science.npy(values(2, "uint16").astype(">u2")), Kind(2, "uint16")),
    "half.npy": (science.npy(values(2, "float32").astype(np.float16)), Kind(2, "float32")),
    "four.npz": (science.npz(values(4, "uint8")), Kind(4)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_header_says_what_the_values_are(tmp_path, name, caplog):
    content, expected = CASES[name]
    (tmp_path / name).write_bytes(content)
    for image in (str(tmp_path / name), np.frombuffer(content, np.uint8)):
        found = header(image)
        assert not isinstance(found, str), found
        assert Kind.of(found.kind) == expected
        assert found.bytes == len(content)
    if not name.startswith("deep"):
        assert (found.height, found.width) == (20, 26)
    assert not caplog.records  # Pillow's own, of many channels


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (science.npy(np.zeros((3, 4), complex)), "values of type complex128, expected numbers"),
        (science.npy(np.zeros((2, 3, 4, 5))), r"an array of shape \(2, 3, 4, 5\), expected \[H, W"),
        (science.npy(np.zeros((0, 4))), r"an array of shape \(0, 4\)"),
        (science.npy(np.array([[{}]], object)), "values of type object"),
        (science.npy(np.zeros((3, 4)))[:20], "it ends within its header"),
        (b"PK\x03\x04 and more", "zip"),
        (b"II*\0\x08\0\0\0", "."),
        (b"II*\0\xff\xff\xff\xff", "."),
    ],
)
def test_what_is_no_image_is_said(content, reason):
    found = header(np.frombuffer(content, np.uint8))
    assert isinstance(found, str)
    assert re.search(reason, found), found


def test_arrays_that_claim_too_many_pixels_are_refused():
    head = science.npy(np.zeros((1, 1), np.uint8))
    huge = head.replace(b"(1, 1), }  ", b"(99999, 99999), }"[:17].ljust(11))
    found = header(np.frombuffer(huge, np.uint8))
    assert isinstance(found, str)
    assert "refused undecoded: 9999800001 pixels" in found


def test_several_arrays_in_a_file_are_refused():
    file = io.BytesIO()
    np.savez(file, a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    assert header(np.frombuffer(file.getvalue(), np.uint8)) == (
        "2 arrays in a .npz (a, b), expected one; fastequi data scan PLACE --array NAME, or "
        "array=NAME of read_image, takes one"
    )


def test_dicom_headers():
    grey = values(1, "uint16")[..., 0]
    scaled = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    for content, expected in (
        (science.dicom(grey), Kind(1, "uint16")),
        (science.dicom(grey, **scaled), Kind(1, "float32")),
        (science.dicom(grey.view(np.int16)), Kind(1, "float32")),
        (science.dicom(values(1, "uint8")[..., 0]), Kind(1)),
    ):
        found = header(np.frombuffer(content, np.uint8))
        assert (found.height, found.width, found.format) == (20, 26, "DICOM")
        assert Kind.of(found.kind) == expected
    several = header(np.frombuffer(science.dicom(grey, NumberOfFrames=4), np.uint8))
    assert several == "4 frames in a DICOM file, expected one; --pages images of a scan"


def test_kinds_are_numbers():
    for depth in DEPTHS:
        for kind in (Kind(1, depth), Kind(3, depth, True), Kind(4095, depth)):
            assert Kind.of(kind.code) == kind
            assert 0 < kind.code < 1 << 16
    assert Kind.of(0) is None
    assert Kind(4096).code == 0
    codes = np.array([RGB8.code] * 3 + [Kind(2).code] * 5 + [0], np.uint16)
    assert list(counts(codes).items()) == [(Kind(2), 5), (RGB8, 3)]
    assert counts(np.broadcast_to(np.uint16(RGB8.code), 7)) == {RGB8: 7}
    assert str(Kind(12, "uint16")) == "12 channels of uint16"
    assert str(RGB8) == "3 channels (RGB) of uint8"


def test_a_run_takes_what_most_images_are():
    codes = np.array([Kind(12, "uint16").code] * 4 + [Kind(12).code] * 2 + [RGB8.code], np.uint16)
    assert Wanted("all").unfit(codes) == {
        RGB8.code: "3 channels (RGB) of uint8, expected 12 as most have"
    }
    assert Wanted("0,2", one_depth=True).unfit(codes) == {
        RGB8.code: "3 channels (RGB) of uint8, expected 12 as most have",
        Kind(12).code: (
            "12 channels of uint8, but data.value_range is in the numbers of one depth, uint16 as "
            "most have; data.value_range=dtype takes several"
        ),
    }
    assert Wanted("all").unfit(codes[3:]) == {  # as many of eight bits
        RGB8.code: "3 channels (RGB) of uint8, expected 12 as most have"
    }
    assert Wanted("all").unfit(codes[-2:]) == {
        RGB8.code: "3 channels (RGB) of uint8, expected 12 (as many have another)"
    }
    assert set(Wanted("0,12").unfit(codes)) == set(map(int, codes))  # none has thirteen
    assert Wanted().unfit(codes) == {}
    flagged = codes | np.array([NO_RGB] * 6 + [0], np.uint16)
    assert set(Wanted().unfit(flagged)) == {
        Kind(12, "uint16").code | NO_RGB,
        Kind(12).code | NO_RGB,
    }
    assert set(Wanted("all").unfit(flagged)) == {RGB8.code}
    assert Wanted("all").unfit(np.append(codes, np.uint16(0)))[0] == (
        "channels that are not read as they are"
    )
    for unknown in (None, np.zeros(3, np.uint16)):
        assert Wanted().unfit(unknown) == {}
        with pytest.raises(ValueError, match=r"data.channels: expected rgb, as an index of before"):
            Wanted("all").unfit(unknown)


def test_depths_mix_unless_a_range_or_a_run_says_one():
    """In evaluation, which knows a run's channels alone, as when it began."""
    depths = ("uint8", "uint16", "float32")
    codes = np.array([Kind(1, depth).code for depth in depths for _ in range(3)], np.uint16)
    assert Wanted("all").unfit(codes) == Wanted("0", count=1).unfit(codes) == {}
    assert Wanted("0", count=1, depth="uint16").unfit(codes) == {
        Kind(1, "float32").code: "1 channel of float32, expected uint16 at most as the run's"
    }
    assert Wanted("all", one_depth=True).unfit(codes[:6]) == {
        Kind(1).code: (
            "1 channel of uint8, but data.value_range is in the numbers of one depth, uint16 (as "
            "many have another); data.value_range=dtype takes several"
        )
    }


@pytest.mark.parametrize("depth", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [3, 5])
def test_compressed_planes_are_as_many_channels_as_they_are(channels, depth):
    """Pillow opens one of them as a grey image."""
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    for compression in (None, "zlib", "lzw"):
        file = io.BytesIO()
        planes = values(channels, depth).transpose(2, 0, 1)
        how = {"photometric": "minisblack", "planarconfig": "separate"}
        tifffile.imwrite(file, planes, compression=compression, **how)
        code = header(np.frombuffer(file.getvalue(), np.uint8)).kind
        assert Kind.of(code) == Kind(channels, depth)
        assert code & NO_RGB, compression


def test_images_that_do_not_fit_are_named_and_counted(tmp_path, caplog):
    contents = {f"{i}.tif": science.plain_tiff(values(5, "uint16", i)) for i in range(30)}
    contents["b.png"] = CASES["rgb.png"][0]
    folder = science.write(tmp_path / "set", contents)
    with pytest.raises(
        ValueError,
        match=r"30 of 31 images .* read as data\.channels=rgb asks: .*, of which no RGB is made",
    ):
        open_source(folder)
    source = open_source(folder, wanted=Wanted("all"))
    assert len(source) == 30
    assert "1 of 31 images" in caplog.text
    assert "b.png (3 channels (RGB) of uint8, expected 5 as most have); left out" in caplog.text
    assert counts(source.kinds) == {Kind(5, "uint16"): 30}
    assert counts(source.pick([3, 1]).kinds) == {Kind(5, "uint16"): 2}


def test_an_rgb_run_says_what_it_loses(tmp_path, caplog):
    contents = {f"{i}.png": science.png(values(1, "uint16", i)) for i in range(3)}
    contents |= {"c.png": CASES["alpha.png"][0], "d.png": CASES["rgb.png"][0]}
    with caplog.at_level(logging.WARNING):
        assert len(open_source(science.write(tmp_path / "set", contents))) == 5
    assert "3 images of 1 channel of uint16 are made 8-bit RGB; --data.channels all" in caplog.text
    assert "1 image of 4 channels of uint8 is made 8-bit RGB" in caplog.text
    assert "of 3 channels (RGB)" not in caplog.text


@pytest.mark.parametrize(("least", "most", "said"), [(375, 620, "become 2 of 256 greys"),
                                                     (0, 60000, "")])  # fmt: skip
def test_an_rgb_run_says_how_little_is_left_of_scanned_values(
    least, most, said, tmp_path, caplog, capsys
):
    random = np.random.default_rng(0)
    arrays = {f"{i}.png": random.integers(least, most, (24, 20, 1), np.uint16) for i in range(3)}
    folder = science.write(tmp_path / "set", {k: science.png(v) for k, v in arrays.items()})
    commands.data(["scan", str(folder)])
    with caplog.at_level(logging.WARNING):
        open_source(folder)
    assert "3 images of 1 channel of uint16 are made 8-bit RGB; --data.channels" in caplog.text
    low, high = (np.percentile([*arrays.values()], p) for p in (0.1, 99.9))
    ends = f"; little is left of them: their values, {low:.0f} to {high:.0f}, "
    assert (ends in caplog.text) == bool(said)
    assert said in caplog.text


@pytest.mark.parametrize("scanned", [False, True])
def test_arrays_of_planes_are_doubted_where_they_are_opened(scanned, tmp_path, caplog, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(3):
        np.save(folder / f"{i}.npy", np.zeros((5, 24, 20), np.uint16) + i)
    if scanned:
        commands.data(["scan", str(folder)])
    with caplog.at_level(logging.WARNING):
        open_source(folder, wanted=Wanted("all"))
    said = "more channels (20) than the 5 pixels of a side: is it [C, H, W]? [H, W, C] is read"
    assert said in caplog.text
    assert (said in capsys.readouterr().out) == scanned


def test_arrays_are_images_only_where_there_are_no_others(tmp_path, caplog):
    """Beside photographs they are labels or features."""
    alone = science.write(tmp_path / "a", {"1.npy": CASES["nine.npy"][0]})
    science.write(alone / "deeper", {"2.npz": science.npz(values(9, "uint8"))})
    found = open_source(alone, wanted=Wanted("all"))
    assert list(found.names) == ["1.npy", "deeper/2.npz"]
    beside = science.write(alone, {"photo.png": CASES["rgb.png"][0]})
    with caplog.at_level(logging.INFO):
        assert list(open_source(beside).names) == ["photo.png"]
    assert "passed over 1 × .npy beside images, 1 × .npz beside images" in caplog.text


def test_dicom_needs_no_extension(tmp_path, capsys, caplog):
    """As archives write it; of other files without one none is taken, nor the table of a medium."""
    content = [science.dicom(values(1, "uint16", i)[..., 0]) for i in range(4)]
    names = ["IM0", "b.dcm", "s1/1.2.840.10008.7", "s1/IM1"]
    (tmp_path / "set" / "s1").mkdir(parents=True)
    folder = science.write(tmp_path / "set", dict(zip(names, content, strict=True)))
    others = {"README": b"x" * 200, "s1/log.1": b"", "s1/DICOMDIR": content[0], ".im": content[0]}
    science.write(folder, others)
    os.mkfifo(folder / "s1" / "pipe")
    with caplog.at_level(logging.INFO):
        source = open_source(folder, wanted=Wanted("all"))
    assert list(source.names) == names
    assert "passed over 3 × without extension, 1 × .1, 1 × hidden" in caplog.text
    for i in range(4):
        np.testing.assert_array_equal(decoded(source.encoded(i)), values(1, "uint16", i))
    commands.data(["scan", str(folder)])
    assert "4 images" in capsys.readouterr().out
    caplog.clear()
    assert list(open_source(folder, wanted=Wanted("all")).names) == names
    assert "not used" not in caplog.text
    (tmp_path / "list.txt").write_text("set/IM0\nset/README\nset/s1/IM1\n")
    listed = open_source(tmp_path / "list.txt", wanted=Wanted("all"))
    assert list(listed.names) == ["set/IM0", "set/s1/IM1"]
    (folder / "a.png").write_bytes(CASES["rgb.png"][0])
    (folder / ".fastequi" / "index.fei").unlink()
    assert list(open_source(folder).names) == ["a.png"]


def test_a_scan_names_the_few_images_of_another_kind(tmp_path, capsys):
    contents = {f"{i}.npy": science.npy(values(5, "uint16", i)) for i in range(12)}
    contents |= {f"odd{i}.npy": science.npy(values(4, "uint16", i)) for i in range(4)}
    commands.data(["scan", str(science.write(tmp_path / "set", contents))])
    said = capsys.readouterr().out
    assert (
        "values      4 channels of uint16: 4 images (odd0.npy, odd1.npy, odd2.npy, ...)\n" in said
    )
    assert "values      5 channels of uint16: 12 images\n" in said


def test_dicom_without_an_extension_in_shards(tmp_path):
    """Where there are no images, and only by its bytes."""
    image = science.dicom(values(1, "uint16")[..., 0])
    (tmp_path / "0.tar").write_bytes(tar({"s/IM1": image, "s/IM0": image, "README": b"text"}))
    found = open_source(tmp_path / "0.tar", wanted=Wanted("all"))
    assert list(found.names) == ["0.tar/s/IM0", "0.tar/s/IM1"]
    np.testing.assert_array_equal(decoded(found.encoded(0)), values(1, "uint16"))
    (tmp_path / "1.tar").write_bytes(tar({"a.png": CASES["rgb.png"][0]}))
    assert list(open_source(tmp_path / "{0..1}.tar").names) == ["1.tar/a.png"]
    (tmp_path / "2.tar").write_bytes(tar({"a.png": CASES["rgb.png"][0], "IM0": image}))
    assert list(open_source(tmp_path / "2.tar").names) == ["2.tar/a.png"]


def test_arrays_of_a_set_with_images_are_labels(tmp_path, caplog):
    """In whatever shard they are, and in a list."""
    photo, label = CASES["rgb.png"][0], science.npy(values(1, "uint8"))
    (tmp_path / "0.tar").write_bytes(tar({"a.png": photo, "b.png": photo}))
    (tmp_path / "1.tar").write_bytes(tar({"a.npy": label, "b.npy": label}))
    with caplog.at_level(logging.INFO):
        assert list(open_source(tmp_path / "{0..1}.tar").names) == ["0.tar/a.png", "0.tar/b.png"]
    assert "passed over 2 × .npy beside images" in caplog.text
    assert len(open_source(tmp_path / "1.tar")) == 2
    folder = science.write(tmp_path / "files", {"a.png": photo, "b.npy": label})
    (folder / "list.txt").write_text("a.png\nb.npy\n")
    assert list(open_source(folder / "list.txt").names) == ["a.png"]
    (folder / "other.txt").write_text("b.npy\n")
    assert list(open_source(folder / "other.txt").names) == ["b.npy"]


def test_an_image_of_too_many_channels_is_left_out_alone(tmp_path, caplog):
    contents = {f"{i}.npy": science.npy(values(5, "uint16", i)) for i in range(12)}
    contents["odd.npy"] = science.npy(np.zeros((3, 4, 5000), np.uint16))
    source = open_source(science.write(tmp_path / "a", contents), wanted=Wanted("all"))
    assert len(source) == 12
    assert "odd.npy (channels that are not read as they are)" in caplog.text


def test_sixteen_bits_of_jpeg_2000_are_seen():
    """Pillow opens it as 8-bit RGB."""
    content = bytearray(saved(COLOURS, "JPEG2000", no_jp2=True))
    assert Kind.of(header(np.frombuffer(bytes(content), np.uint8)).kind) == RGB8
    for i in range(3):
        content[42 + 3 * i] = 15
    found = header(np.frombuffer(bytes(content), np.uint8))
    assert Kind.of(found.kind) == Kind(3, "uint16", True)


def test_what_was_left_out_without_a_package_is_scanned_again(tmp_path, monkeypatch, caplog):
    deep = {f"{i}.tif": science.tiff_of(values(3, "uint16", i)) for i in range(3)}
    plain = {f"p{i}.tif": science.plain_tiff(values(3, "uint16", i)) for i in range(3)}
    folder = science.write(tmp_path / "set", {**deep, **plain})
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tifffile", None)
        commands.data(["scan", str(folder)])
        commands.data(["scan", str(folder), "--part", "1/1"])
        with pytest.raises(ValueError, match=r"this TIFF needs tifffile.*; --exclude leaves"):
            open_source(folder, wanted=Wanted("all"))
    said = (
        f"; 3 for tifffile, which can be imported now, were left out: fastequi data scan {folder} "
        f"reads them again"
    )
    with pytest.raises(ValueError, match=re.escape(said)):
        open_source(folder, wanted=Wanted("all"))
    assert len(open_source(folder, wanted=Wanted("all"), tolerate=0.6)) == 3
    assert said in caplog.text
    commands.data(["scan", str(folder), "--part", "1/1"])  # goes on with what it left out
    commands.data(["merge", str(folder)])
    assert len(open_source(folder, wanted=Wanted("all"))) == 6
    commands.data(["scan", str(folder)])
    assert len(open_source(folder, wanted=Wanted("all"))) == 6


def test_shards_are_listed_again_once_a_package_is_there(tmp_path, monkeypatch, caplog):
    images = {f"{i}.dcm": science.dicom(values(1, "uint16", i)[..., 0]) for i in range(3)}
    shard = tmp_path / "a.tar"
    shard.write_bytes(tar({**images, "b.npy": science.npy(values(1, "uint16"))}))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pydicom", None)
        assert len(open_source(shard, wanted=Wanted("all"), tolerate=0.9)) == 1
    with caplog.at_level(logging.INFO):
        assert len(open_source(shard, wanted=Wanted("all"))) == 4
    assert "of members 3 for pydicom, which can be imported now, were left out; the" in caplog.text


def test_where_a_scan_left_all_out_its_reasons_are_said(tmp_path, monkeypatch, capsys):
    frames = np.stack([values(1, "uint16", i)[..., 0] for i in range(3)])
    content = science.dicom(frames[0], NumberOfFrames=3, PixelData=frames.tobytes())
    folder = science.write(tmp_path / "set", {f"{i}.dcm": content for i in range(3)})
    with pytest.raises(SystemExit, match="1"):
        commands.data(["scan", str(folder)])
    said, file = capsys.readouterr(), folder / ".fastequi" / "index.fei"
    assert "0 images, 0 kB; 3 left out" in said.out
    assert said.err.endswith(f"fastequi: all 3 images are left out of {file}\n")
    with pytest.raises(ValueError, match=r"3 of 3 images .*3 frames in a DICOM .*--pages images"):
        open_source(folder, wanted=Wanted("all"))
    single = science.dicom(frames[0])
    other = science.write(tmp_path / "other", {"a.dcm": single, "b.dcm": single})
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pydicom", None)
        with pytest.raises(SystemExit, match="1"):
            commands.data(["scan", str(folder), str(other)])
        assert capsys.readouterr().err.endswith("index.fei\n")
    with pytest.raises(ValueError, match=r"2 for pydicom, which can be imported now, were left"):
        open_source(other, wanted=Wanted("all"))
