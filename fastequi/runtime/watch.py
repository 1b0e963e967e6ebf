"""Ends a run whose features become worse, at the best of its checkpoints.

The score is an online probe's, larger for better features (`fastequi.evaluate.online`). The first
one is taken before the first step, so that weights from elsewhere are what later ones are compared
with. Each best one is saved and stays; a run that ends here is cut back to the best, so that its
newest checkpoint, its model.safetensors and whatever reads the folder agree.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastequi.atomic import replace_text
from fastequi.runtime import checkpoint, manifest

NAME = "stopped.json"


@dataclass(frozen=True)
class Stopped:
    """Why a run ended; in the run's folder as `stopped.json`.

    Attributes:
        step, score: of the last probe.
        best_step, best: of the best one, whose checkpoint is kept.
        amount: by which the score was allowed to fall.
    """

    step: int
    score: float
    best_step: int
    best: float
    amount: float

    @property
    def reason(self) -> str:
        return (
            f"stopped after step {self.step}: the online probe's score fell to {self.score:.3f}, "
            f"more than train.stop_if_worse={self.amount:g} below the {self.best:.3f} of step "
            f"{self.best_step}"
        )

    def __str__(self) -> str:
        return (
            f"{self.reason}, whose checkpoint and model.safetensors are what is left; --resume "
            f"with other settings goes on from there"
        )


class Watch:
    """The scores of a run.

    Args:
        amount: `train.stop_if_worse`; 0 watches nothing.

    Attributes:
        best_step: the step of the best score, whose checkpoint has to stay; None: there is none.
    """

    def __init__(self, amount: float) -> None:
        self.amount = amount
        self.best, self.score = -math.inf, -math.inf
        self.step = 0
        self.best_step: int | None = None

    def see(self, step: int, score: float) -> bool:
        """Takes a step's score, which -inf says there is none; whether it is the best so far."""
        if not self.amount or score == -math.inf:
            return False
        self.step, self.score = step, score
        if score <= self.best:
            return False
        self.best_step, self.best = step, score
        return True

    def stopped(self) -> Stopped | None:
        """Why the run should end, or None."""
        if self.best_step is None or self.score >= self.best - self.amount:
            return None
        return Stopped(self.step, self.score, self.best_step, self.best, self.amount)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint's JSON; empty if nothing was seen."""
        if self.best_step is None:
            return {}
        names = ("step", "score", "best_step", "best")
        return {"watch": {name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint's state; one without scores leaves it as it is."""
        for name, value in state.get("watch", {}).items():
            setattr(self, name, value)


def cut_back(run_dir: Path, why: Stopped) -> Path:
    """Leaves the best checkpoint as the newest of a run, and says why in stopped.json.

    Raises:
        OSError: the best checkpoint is damaged; nothing is removed.
    """
    folder = run_dir / "checkpoints"
    best = checkpoint.folder_of(folder, why.best_step)
    if found := manifest.problems(best):
        damage = "; ".join(found)
        raise OSError(f"{why.reason}, but {best} is damaged ({damage}); nothing is removed")
    replace_text(run_dir / NAME, json.dumps(asdict(why), indent=1) + "\n")
    replace_text(folder / "latest", best.name)
    for other in checkpoint.steps(folder):
        if checkpoint.step_of(other) > why.best_step:
            shutil.rmtree(other)
    return best


def stopped_before(run_dir: Path) -> Stopped | None:
    """Why a run ended, from its folder; None if it did not end so."""
    file = run_dir / NAME
    return Stopped(**json.loads(file.read_text())) if file.is_file() else None
