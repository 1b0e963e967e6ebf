"""What long work shows: on a terminal a line that is renewed, elsewhere a line now and then."""

import io
import re
import time

import pytest
from rich.console import Console

from fastequi.runtime.progress import Status


def test_a_log_tells_what_goes_on(capsys):
    console, said, end = Console(file=io.StringIO()), "", time.monotonic() + 60

    def until(text):
        nonlocal said
        while not re.search(rf"^\d:\d\d:\d\d so far: {text}\n", said, re.MULTILINE):
            assert time.monotonic() < end, said
            time.sleep(0.01)
            said += capsys.readouterr().err

    with Status(console, "features", every=0.05) as status:
        until("features")
        status.update("probes, 50%")
        until("probes, 50%")
    capsys.readouterr()
    time.sleep(0.2)
    assert capsys.readouterr().err == ""  # nothing comes afterwards
    assert console.file.getvalue() == ""


def test_short_work_says_nothing(capsys):
    with Status(Console(file=io.StringIO()), "features") as status:
        status.update("probes")
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_it_in_place(capsys):
    console = Console(file=io.StringIO(), force_terminal=True)
    with Status(console, "features", every=0.01) as status:
        status.update("probes, 50%")
        time.sleep(0.2)
    assert "probes, 50%" in console.file.getvalue()
    assert capsys.readouterr().err == ""


def test_an_error_ends_it():
    with pytest.raises(ValueError, match="of the work"), Status(Console(), "features", 0.01):
        raise ValueError("of the work")
