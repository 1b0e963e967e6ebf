"""Progress display: a bar or a line on a terminal, lines every few seconds elsewhere."""

from __future__ import annotations

import math
import sys
import threading
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar


class Silent:
    """Shows nothing; for all processes but the first."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, done: float, seconds_left: float, row: dict[str, float]) -> None:
        pass


class Progress:
    """Shows loss, images/s, share of time spent waiting for data, and remaining time.

    Args:
        every: seconds between lines where the output is not a terminal.
    """

    def __init__(self, label: str = "training", every: float = 10.0) -> None:
        self.label, self.every, self.printed = label, every, -float("inf")
        self.console = Console(file=sys.stderr)
        self.bar: Bar | None = None

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
            self.bar = Bar(*columns, TextColumn("{task.fields[text]}"), console=self.console)
            self.bar.start()
            self.task = self.bar.add_task(self.label, total=1.0, text="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, done: float, seconds_left: float, row: dict[str, float]) -> None:
        text = (
            f"step {row['step']}  loss "
            + (f"{row['loss']:.4f}" if "loss" in row else "not finite")
            + (f"  recon {row['recon']:.4f}" if "recon" in row else "")
            + f"  {row['images_per_s']:.0f} images/s  data wait {row['data_wait']:.0%}  "
            f"ETA {_time(seconds_left)}"
        )
        self.say(done, text)

    def say(self, done: float, text: str) -> None:
        """Moves the bar to the share `done` and shows a text beside it."""
        if self.bar is not None:
            self.bar.update(self.task, completed=done, text=text)
        elif time.monotonic() - self.printed >= self.every or done >= 1:
            self.printed = time.monotonic()
            print(f"{self.label} {done:4.0%}  {text}", file=sys.stderr, flush=True)


class Status:
    """What is being done, for work without a measure: shown on a terminal; elsewhere a line on
    stderr now and then, so that a log tells that it goes on.

    Args:
        console: that other things are printed on meanwhile.
        every: seconds between lines where that is not a terminal.
    """

    def __init__(self, console: Console, text: str = "", every: float = 30.0) -> None:
        self._text, self._every, self._start = text, every, time.monotonic()
        self._shown = console.status(text) if console.is_terminal else None
        self._over = threading.Event()
        self._teller = threading.Thread(target=self._tell, name="status", daemon=True)

    def __enter__(self) -> Status:
        if self._shown is not None:
            self._shown.start()
        else:
            self._teller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._shown is not None:
            self._shown.stop()
        else:
            self._teller.join()

    def update(self, text: str) -> None:
        self._text = text
        if self._shown is not None:
            self._shown.update(text)

    def _tell(self) -> None:
        while not self._over.wait(self._every):
            seconds = _time(time.monotonic() - self._start)
            print(f"{seconds} so far: {self._text}", file=sys.stderr, flush=True)


def remaining(elapsed: float, done: float) -> str:
    """The time left at the rate so far, as text."""
    return _time(elapsed * (1 - done) / done if done > 0 else math.inf)


def _time(seconds: float) -> str:
    """As h:mm:ss; "?" before a rate is known."""
    return str(timedelta(seconds=round(seconds))) if math.isfinite(seconds) else "?"
