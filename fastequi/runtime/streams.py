"""Standard streams that are closed, or whose reader leaves, end no work: cron, daemons, `| head`.

What cannot be read by anybody goes to /dev/null from then on. A full disk stays an error.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

_NAMES = ("stdin", "stdout", "stderr")  # by descriptor


def outlast() -> None:
    """From now on writing to a standard stream goes on when nobody is there any more.

    A closed descriptor is taken by /dev/null: the next file to be opened would get its number, and
    what a library writes to "standard error" would go into it.
    """
    for descriptor, name in enumerate(_NAMES):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
        stream = getattr(sys, name)
        if stream is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nothing, "w" if descriptor else "r"))
        elif descriptor and stream is getattr(sys, f"__{name}__"):  # else it is somebody's own
            stream.flush()
            setattr(sys, name, _lasting(stream))


def _lasting(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    raw = _Lasting(stream.fileno(), "wb", closefd=False)
    options = {name: getattr(stream, name) for name in ("encoding", "errors", "line_buffering")}
    return io.TextIOWrapper(io.BufferedWriter(raw), write_through=stream.write_through, **options)


class _Lasting(io.FileIO):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.terminal = self.isatty()

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            hung_up = self.terminal and error.errno == errno.EIO
            if not (hung_up or isinstance(error, ConnectionError)):
                raise  # once, not again when Python clears up
            return super().write(data)
