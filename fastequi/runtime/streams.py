"""A closed standard stream, or one whose reader exits, ends no command: cron, daemons, `| head`.

Output that nobody can read goes to /dev/null from then on. A full disk is still an error.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

_NAMES = ("stdin", "stdout", "stderr")  # by descriptor


def outlast() -> None:
    """Lets writes to a standard stream succeed after its reader has gone.

    A closed descriptor is opened on /dev/null: otherwise the next file opened would get its number,
    and a library's output to "standard error" would go into that file.
    """
    for descriptor, name in enumerate(_NAMES):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # opens the lowest free descriptor, this one
        stream = getattr(sys, name)
        if stream is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(nothing, "w" if descriptor else "r"))
        elif descriptor and stream is getattr(
            sys, f"__{name}__"
        ):  # else it was replaced on purpose
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
                raise  # only once, not again at interpreter exit
            return super().write(data)
