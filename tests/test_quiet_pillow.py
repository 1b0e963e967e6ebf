"""Pillow's warnings are kept back while images are read in threads; all others are as they were."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from fastequi.data.pillow import decoded
from fastequi.data.sources.quiet_pillow import quiet_pillow
from fastequi.data.values import decoded as values_of


def encoded(form):
    file = io.BytesIO()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(file, form)
    return np.frombuffer(file.getvalue(), np.uint8)


def others():
    """The filters but for the one that only matches Pillow's modules within."""
    return [entry for entry in warnings.filters if "_OfPillowHere" not in str(entry[3])]


def of_pillow():
    warnings.warn_explicit("of Pillow", UserWarning, "Image.py", 1, module="PIL.Image")


def test_filters_are_as_before_when_threads_have_read(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns of more, up to twice
    images = [encoded(form) for form in ("WEBP", "TIFF", "PNG", "GIF")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = others()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: (decoded(images[i % 4]), values_of(images[i % 4])), range(800)))
        assert others() == before
        with pytest.raises(Image.DecompressionBombWarning):
            Image.open(io.BytesIO(images[0].data)).load()


def test_others_warnings_are_heard_within():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet_pillow():
            with quiet_pillow():
                warnings.warn("of ours", stacklevel=1)
            of_pillow()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(of_pillow).result()  # of a thread that is not within
        of_pillow()
    assert [str(one.message) for one in heard] == ["of ours", "of Pillow", "of Pillow"]


def test_it_holds_whatever_happens_to_the_filters_meanwhile():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        another = warnings.catch_warnings()
        another.__enter__()
        with quiet_pillow():
            another.__exit__(None, None, None)  # the list that was there before, without it
            with quiet_pillow():
                of_pillow()
            warnings.filterwarnings("error", module=r"PIL\.")  # comes before it
            with quiet_pillow():
                of_pillow()
        assert ("error", r"PIL\.") in [(e[0], getattr(e[3], "pattern", "")) for e in others()]
        with pytest.raises(UserWarning, match="of Pillow"):
            of_pillow()


def test_what_is_shown_once_is_shown_once():
    """Where filters change, Python shows again what it has shown of each place."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        image = encoded("WEBP")
        for _ in range(3):
            decoded(image)
            warnings.warn("of ours", stacklevel=1)
    assert len(heard) == 1
