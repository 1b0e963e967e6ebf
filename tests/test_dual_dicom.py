"""DICOM whose preamble makes it a TIFF too."""

import numpy as np
import pytest

from fastequi.cli import main as cli
from fastequi.data import read_image
from fastequi.data.sources.image_sets import open_source
from fastequi.data.sources.wanted import Wanted
from fastequi.data.values import decoded
from tests.support import science


@pytest.mark.parametrize("preamble", [b"II*\0", b"MM\0*", bytes(4)])
def test_dicom_that_begins_as_a_tiff_is_dicom(tmp_path, preamble, capsys):
    """Part 10 of the standard allows files that are both."""
    content = science.dicom(science.values(1, "uint16"))
    for i in range(2):
        (tmp_path / f"{i}.dcm").write_bytes(preamble + content[4:])
    known = read_image(tmp_path / "0.dcm").movedim(0, -1)
    for options in (["--pages", "images"], ["--pages", "first"]):
        cli.main(["data", "scan", str(tmp_path), *options])
        assert "2 images" in capsys.readouterr().out
        source = open_source(tmp_path, wanted=Wanted("all"))
        assert np.array_equal(decoded(source.encoded(1)), known)
