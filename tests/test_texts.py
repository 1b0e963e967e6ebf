"""Lazy sequences of strings: the same as a tuple of them, whatever is asked."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastequi.data.sources.made_texts import Joined, Numbered, Patched, places_of
from fastequi.data.sources.texts import Names, Texts, chunks, taken

# what names of files decode to: any text, and surrogates for bytes that are no UTF-8
NAME = st.one_of(
    st.text(max_size=6), st.binary(max_size=6).map(lambda b: b.decode(errors="surrogateescape"))
)
LISTS = st.lists(NAME, max_size=20)


def same(lazy: Texts, expected: tuple[str, ...]) -> None:
    assert len(lazy) == len(expected)
    assert tuple(lazy) == expected
    assert lazy == expected
    assert expected == lazy
    assert list(lazy[::-1]) == list(expected[::-1])
    assert lazy == list(expected)
    assert lazy != (*expected, "x")
    assert hash(lazy) == hash(expected)
    assert [lazy[i] for i in range(-len(expected), len(expected))] == [*expected, *expected]
    for i in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError, match=f"expected places below {len(expected)}"):
            lazy[i]
    assert [string for part in chunks(lazy, 3) for string in part] == list(expected)


@settings(max_examples=50, deadline=None)
@given(LISTS, st.slices(20), st.lists(st.integers(0, 19)))
def test_names_are_as_a_tuple(strings, part, places):
    names, expected = Names.of(strings), tuple(strings)
    same(names, expected)
    same(names[part], expected[part])
    same(names[part][1:], expected[part][1:])
    assert names[2:9] == Names.of(strings)[2:9]
    chosen = [i for i in places if i < len(strings)]
    same(names.take(chosen), tuple(strings[i] for i in chosen))
    same(names[1:].take([i - 1 for i in chosen if i]), tuple(strings[i] for i in chosen if i))
    assert taken(expected, np.array(chosen, int)) == taken(names, np.array(chosen, int))
    joined = Names.joined([names[:3], names[3:], Names.of([])])
    same(joined, expected)
    assert joined == names
    assert names[1:].separated() == "\0".join(strings[1:]).encode(errors="surrogateescape")


@settings(max_examples=50, deadline=None)
@given(LISTS, st.lists(st.integers(0, 19)))
def test_paths_numbers_and_patches_are_as_tuples(strings, places):
    chosen = [i for i in places if i < len(strings)]
    numbers = np.array(chosen, np.int32)
    for lazy in (
        Joined("a folder", Names.of(strings)),
        Numbered(strings, numbers),
        Patched(Names.of(strings), {2: "other"}),
    ):
        expected = tuple(lazy)
        same(lazy, expected)
        some = [i for i in chosen if i < len(lazy)]
        same(lazy.take(some), tuple(expected[i] for i in some))
        same(lazy[1:].take([]), ())
    assert Joined("f", Names.of(strings)) == tuple(os.path.join("f", name) for name in strings)
    assert Numbered(strings, numbers) == tuple(strings[i] for i in chosen)
    patched = ["other" if i == 2 else name for i, name in enumerate(strings)]
    assert Patched(Names.of(strings), {2: "other"}) == patched


@settings(max_examples=50, deadline=None)
@given(LISTS, LISTS)
def test_places_are_found_among_others(wanted, among):
    found = places_of(Names.of(wanted), Names.of(among)).tolist()
    for string, place in zip(wanted, found, strict=True):
        assert (place >= 0) == (string in among)
        assert place < 0 or among[place] == string


def test_strings_of_one_hash_are_told_apart():
    class Alike(str):
        def __hash__(self):
            return 7

    among = tuple(map(Alike, "abcdef"))
    assert places_of(tuple(map(Alike, "exa")), among).tolist() == [4, -1, 0]


def test_what_is_no_sequence_is_not_equal():
    names = Names.of(["a"])
    assert names != "a"
    assert names != 1
    assert repr(Names.of("abcd")) == "Names(4: 'a', 'b', 'c', ...)"
    with pytest.raises(UnicodeEncodeError):
        Names.of(["\ud800"])
