"""Headers of .npy are read without `ast`, and as NumPy reads them."""

import ast
import io
from dataclasses import replace

import numpy as np
import pytest
from numpy.lib import format as npy

from fastequi.data.pixels import Pixels
from fastequi.data.sources import npy_header
from fastequi.data.sources.arrays import decoded, is_plain, shape_of
from fastequi.data.sources.kinds import Kind
from tests.support import science

TYPES = ("u1", "<u2", ">u2", "<i4", "<f2", ">f4", "<f8", "?")


def written(text, version=(1, 0)):
    size = {1: 2, 2: 4, 3: 4}[version[0]]
    length = len(text).to_bytes(size, "little")
    return npy_header.MAGIC + bytes(version) + length + text.encode("latin1")


def about(descr="'<u2'", order="False", shape="(3, 4)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (3, 4, 12), (1, 2, 3, 4), (0, 7)])
def test_as_numpy_does(shape, version):
    for name in TYPES:
        for order in "CF":
            array, file = np.zeros(shape, name, order), io.BytesIO()
            npy.write_array(file, array, version)
            known, mine = io.BytesIO(file.getvalue()), io.BytesIO(file.getvalue())
            npy.read_magic(known)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            assert npy_header.read(mine) == read(known)
            assert mine.tell() == known.tell()


@pytest.mark.parametrize(
    "text",
    [
        about(shape="(3L, 4L)"),  # by Python 2
        about(descr="u'<u2'").replace("'shape'", "u'shape'"),
        '{"shape":(3,4),"fortran_order":False,"descr":"<u2"}',
        " { 'fortran_order' : False , 'descr' : '<u2' , 'shape' : ( 3 , 4 , ) } \n",
    ],
)
def test_as_others_write_it(text):
    assert npy_header.read(io.BytesIO(written(text))) == ((3, 4), False, np.dtype("<u2"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x93NUM", "expected .npy by its bytes"),
        (written(about(), (3, 0)), "an array file of version 3.0, expected 1.0 or 2.0"),
        (written(about())[:-9], "it ends within its header"),
        (npy_header.MAGIC + b"\2\0\xff\xff\xff\xff", "a header of 4294967295 bytes, more than"),
        (written(about(descr="[('a', '<f4')]")), r"of no array of numbers: {'descr': \[\('a', '<"),
        (written(about(descr="'<u2x'")), "of no array of numbers: .*type '<u2x'"),
        (written(about(descr="'<u2,<u2'")), "of no array of numbers: .*type '<u2,<u2'"),
        (written(about(descr="'(2,'")), "of no array of numbers"),
        (written(about(shape="(3)")), "a number is no shape"),
        (written(about(shape="(3, , 4)")), "invalid literal"),
        (written(about(shape="(-3, 4)")), "of no array of numbers"),
        (written(about(order="None")), "of no array of numbers"),
        (written(about() + "}"), "of no array of numbers"),
        (written("{'descr': '<u2', " + about()[1:]), "of no array of numbers"),
        (written("{'descr': '<u2', 'shape': (3, 4)}"), "of no array of numbers"),
        (written("{"), "of no array of numbers: {"),
        (written(""), "of no array of numbers"),
    ],
)
def test_what_is_no_header_says_so(content, said):
    with pytest.raises(ValueError, match=said):
        npy_header.read(io.BytesIO(content))


def test_images_are_read_without_ast(monkeypatch):
    def refuse(*_):
        raise SystemError("AST constructor recursion depth mismatch (before=21, after=30)")

    file, packed, array = io.BytesIO(), io.BytesIO(), np.arange(24, dtype="<u2").reshape(2, 3, 4)
    np.save(file, array)
    np.savez(packed, image=array)
    monkeypatch.setattr(ast, "literal_eval", refuse)
    monkeypatch.setattr(ast, "parse", refuse)
    for content in (file.getvalue(), packed.getvalue()):
        assert np.array_equal(decoded(io.BytesIO(content)), array)
        assert shape_of(io.BytesIO(content))[:2] == (2, 3)


def test_types_by_one_letter_are_read():
    for letter in "?BHf":
        read = npy_header.read(io.BytesIO(written(about(f"'{letter}'"))))
        assert read[2] == np.dtype(letter)


def plain(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


ARRAY = np.arange(24, dtype="<u2").reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("content", "is_for_dali"),
    [
        (plain(ARRAY), True),
        (plain(np.asfortranarray(ARRAY)), False),
        (plain(ARRAY.astype(">u2")), False),
        (plain(ARRAY) + b"\0", False),
        (written(about("'uint16'", shape="(2, 3, 4)")) + ARRAY.tobytes(), False),
        (written(about(shape="(2L, 3L, 4L)")) + ARRAY.tobytes(), False),
        (written(about(shape="(2,3,4)")) + ARRAY.tobytes(), False),
        (written(about(shape="(2, 3, 4)").replace("'", '"')) + ARRAY.tobytes(), False),
    ],
)
def test_dali_gets_what_numpy_writes_and_decodes_it(content, is_for_dali):
    """It refuses some others, one by one, where there is no CUDA device."""
    pixels = replace(Pixels.whole(Kind(4, "uint16")), as_arrays=True)
    assert is_plain(io.BytesIO(content), "uint16", 4) == is_for_dali
    assert np.array_equal(science.given(content, pixels), ARRAY)
