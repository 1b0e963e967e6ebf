"""How many images of a set may be unreadable."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """A share of unreadable images, which are left out; more of them are refused.

    Attributes:
        share: of all images; one always may, unless it is 0.
        option: that changes the share, for errors; "": none does.
    """

    share: float = 0.1
    option: str = "data.tolerate"

    def allowed(self, count: int) -> int:
        """How many of a number of images may be unreadable."""
        return max(int(self.share > 0), int(count * self.share))

    def __str__(self) -> str:
        """The share and what changes it, as "10 % of them (data.tolerate)"."""
        return f"{100 * self.share:.4g} % of them" + (f" ({self.option})" if self.option else "")
