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


def test_filters_are_as_before_when_threads_have_read(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns of more, up to twice
    images = [encoded(form) for form in ("WEBP", "TIFF", "PNG", "GIF")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: (decoded(images[i % 4]), values_of(images[i % 4])), range(800)))
        assert warnings.filters == before
        with pytest.raises(Image.DecompressionBombWarning):
            Image.open(io.BytesIO(images[0].data)).load()


def test_others_warnings_are_heard_within():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet_pillow():
            with quiet_pillow():
                warnings.warn("of ours", stacklevel=1)
            warnings.warn_explicit("of Pillow", UserWarning, "Image.py", 1, module="PIL.Image")
        warnings.warn_explicit("of Pillow, after", UserWarning, "Image.py", 1, module="PIL.Image")
    assert [str(one.message) for one in heard] == ["of ours", "of Pillow, after"]


def test_filters_that_were_changed_within_stay():
    with warnings.catch_warnings():
        with quiet_pillow():
            warnings.filterwarnings("error", "mine")
            changed = [entry for entry in warnings.filters if "PIL" not in str(entry[3])]
        assert warnings.filters == changed
        assert warnings.filters[0][0] == "error"
