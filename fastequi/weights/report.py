"""What happened to a file's tensors on their way into a ViT."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """Lines about one file, filled while it is read.

    Attributes:
        source: the file or folder.
        layout: what it was recognised as.
        chosen: which of its networks, and below which prefix.
        tensors, parameters: of the encoder that were loaded.
        changed: renamed or converted.
        resized: positions, patches or channels that were made to fit.
        missing: of the encoder's tensors, and what stands in their place.
        unexpected: tensors that were left out.
        assumed: what neither the file nor the caller said.
        otherwise: how one says what was assumed.
        said: other things to know.
    """

    source: str
    layout: str = ""
    chosen: str = ""
    tensors: int = 0
    parameters: int = 0
    changed: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    otherwise: str = ""
    said: list[str] = field(default_factory=list)

    def remarks(self) -> list[str]:
        """All that one may not expect of a file in order; empty if there is nothing."""
        parts = [self.chosen] if self.chosen else []
        parts += self.changed + self.resized
        parts += [f"missing {'; '.join(self.missing)}"] if self.missing else []
        parts += [f"left out {'; '.join(self.unexpected)}"] if self.unexpected else []
        parts += [f"assumed {', '.join(self.assumed)}; {self.otherwise}"] if self.assumed else []
        return [*parts, *self.said]

    def lines(self) -> list[str]:
        """The whole report, a line for each kind."""
        kinds = {
            "network": [self.chosen] if self.chosen else [],
            "changed": self.changed,
            "resized": self.resized or ["nothing"],
            "missing": self.missing or ["nothing"],
            "unexpected": self.unexpected or ["nothing"],
            "assumed": self.assumed,
            "note": self.said,
        }
        loaded = f"{self.tensors} tensors, {self.parameters:,} parameters"
        head = [f"weights     {self.source}", f"layout      {self.layout}", f"loaded      {loaded}"]
        return head + [f"{kind:12s}{'; '.join(told)}" for kind, told in kinds.items() if told]
