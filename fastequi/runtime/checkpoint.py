"""Checkpoints: one folder per saved step, tensors in safetensors and the rest in JSON; no pickle.

    checkpoints/step_00001200/  model.safetensors  optimizer.safetensors  [ema.safetensors]
                                state.json  manifest.json
    checkpoints/latest          the name of the newest one

A run with sharded weights has folders model/, optimizer/, ema/ of safetensors instead of the files
(`fastequi.sharded`); any number of processes can read either.

A folder is written under a temporary name, synced, hashed and renamed
(`fastequi.runtime.manifest`), so a crash at any moment leaves older checkpoints intact, and a
damaged one is detected. Older ones are removed only after the new one was read back and verified.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastequi import sharded
from fastequi.atomic import order_metadata, replace_text, save_tensors
from fastequi.optim import WeightEMA
from fastequi.runtime import manifest
from fastequi.runtime.processes import Processes
from fastequi.versions import version_of

logger = logging.getLogger(__name__)

SETTINGS = "fastequi"
"""Key of a run's settings in the metadata of its model.safetensors."""

_RNG = "rng_state"


@dataclass(frozen=True)
class Snapshot:
    """The content of one step's checkpoint, on the CPU.

    Attributes:
        step: its number.
        tensors: by file, "model", "optimizer" and, if the run keeps one, "ema".
        state: everything else that a resumed run needs, in JSON types (e.g. the data cursor).
        config: the run's settings as text; the manifest holds their hash.
        spared: a step whose checkpoint is not removed, however old it is.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    config: str
    spared: int | None = None


def snapshot(
    step: int,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    ema: WeightEMA | None = None,
    config: str = "",
    generators: Mapping[str, Tensor] | None = None,
    spared: int | None = None,
    copy: bool = False,
    in_parts: bool = False,
) -> Snapshot:
    """The current state as a checkpoint's content.

    Args:
        generators: from :func:`generators` if there are several processes; else this one's.
        spared: see :class:`Snapshot`.
        copy: copy the tensors, since training continues before they are written.
        in_parts: keep sharded tensors sharded, for :func:`write_parts`.
    """
    tensors: dict[str, dict[str, Tensor]] = {
        "model": model.state_dict(),
        "optimizer": {**_pack_optimizer(model, optimizer), **(generators or _generators(0))},
    }
    if ema is not None:
        tensors["ema"] = ema.state_dict()
    owned = tensors
    if not in_parts:
        owned = {
            file: {name: _owned(value, copy) for name, value in values.items()}
            for file, values in tensors.items()
        }
    full = {**state, "step": step, "ema_updates": ema.updates if ema else 0}
    return Snapshot(step, owned, full, config, spared)


def write(folder: Path, snapshot: Snapshot, keep: int = 3) -> Path:
    """Writes one step and, once it verifies, removes all but the `keep` newest and a spared one.

    Args:
        folder: the run's `checkpoints/`.

    Returns:
        The folder of this step.

    Raises:
        OSError: it could not be written, or does not verify; all older checkpoints and `latest`
            are unchanged.
    """
    temporary = _begin(folder, snapshot.step)
    for name, tensors in snapshot.tensors.items():
        save_tensors(temporary / f"{name}.safetensors", tensors)
    return _finish(folder, temporary, snapshot, keep)


def write_parts(folder: Path, snapshot: Snapshot, processes: Processes, keep: int = 3) -> None:
    """:func:`write` of sharded tensors: every process calls it and writes its shards."""
    temporary = folder / f".{folder_of(folder, snapshot.step).name}.tmp"
    if processes.first:
        _begin(folder, snapshot.step)
        for name in snapshot.tensors:
            (temporary / name).mkdir()
    processes.barrier()
    for name, tensors in snapshot.tensors.items():
        sharded.save(temporary / name, tensors)
    if processes.first:
        for file in temporary.glob("*/*.safetensors"):
            order_metadata(file)
        _finish(folder, temporary, snapshot, keep)


def _begin(folder: Path, step: int) -> Path:
    """An empty folder to write a step into."""
    for unfinished in folder.glob(".step_*.tmp"):  # of a run that was killed
        shutil.rmtree(unfinished)
    temporary = folder / f".{folder_of(folder, step).name}.tmp"
    temporary.mkdir(parents=True)
    return temporary


def _finish(folder: Path, temporary: Path, snapshot: Snapshot, keep: int) -> Path:
    """Publishes a written folder as a checkpoint and removes old ones."""
    final = folder_of(folder, snapshot.step)
    (temporary / "state.json").write_text(json.dumps(snapshot.state, indent=1))
    versions = {name: version_of(name) for name in ("fastequi", "torch", "safetensors")}
    entries = {
        "step": snapshot.step,
        "config_sha256": digest(snapshot.config),
        "versions": versions,
    }
    manifest.publish(temporary, final, entries)
    problems = manifest.problems(final)
    if problems:
        raise OSError(f"{final}: written, but {'; '.join(problems)}")
    replace_text(folder / "latest", final.name)
    found = steps(folder)
    later = [
        other for other in found if step_of(other) > snapshot.step
    ]  # damaged: the run went back
    for old in [*later, *found[len(later) + keep :]]:
        if step_of(old) != snapshot.spared:
            shutil.rmtree(old)
    return final


class Saver:
    """Writes a run's checkpoints, at once or in a thread while training continues.

    Args:
        folder: the run's `checkpoints/`.
        keep: number of checkpoints kept.
        async_save: write in a thread. Only one is written at a time: the next one waits.
    """

    def __init__(self, folder: Path, keep: int, async_save: bool = False) -> None:
        self.folder, self.keep, self.async_save = folder, keep, async_save
        self.pool = ThreadPoolExecutor(1, "checkpoint") if async_save else None
        self.written: Future[Path] | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown()  # finishes a write that has begun

    def save(self, snapshot: Snapshot) -> None:
        """Raises the error of the previous save, if that failed."""
        self.wait()
        if self.pool is None:
            write(self.folder, snapshot, self.keep)
        else:
            self.written = self.pool.submit(write, self.folder, snapshot, self.keep)

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            OSError: see :func:`write`.
        """
        written, self.written = self.written, None
        if written is not None:
            written.result()


def folder_of(folder: Path, step: int) -> Path:
    """A step's folder in a run's `checkpoints/`."""
    return folder / f"step_{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step_"))


def steps(folder: Path) -> list[Path]:
    """All checkpoints of a run, newest first, verified or not."""
    named = [path for path in folder.glob("step_*") if path.name.removeprefix("step_").isdigit()]
    return sorted(named, key=step_of, reverse=True)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in a run's `checkpoints/` that verifies; None if there never was one.

    Damaged newer ones are logged, with the damage.

    Raises:
        OSError: there are some, but none verifies.
    """
    damaged: list[str] = []
    for candidate in steps(folder):
        problems = manifest.problems(candidate)
        if not problems:
            for line in damaged:
                logger.warning("%s; going back to %s", line, candidate.name)
            return candidate
        damaged.append(f"checkpoint {candidate} is damaged ({'; '.join(problems)})")
    if damaged:
        raise OSError("no checkpoint can be used: " + "; ".join(damaged))
    if (folder / "latest").is_file():
        raise FileNotFoundError(f"{folder}/latest names a checkpoint, but there is none")
    return None


def outlook(run_dir: Path) -> str:
    """What --resume would do with a run's folder, as a sentence."""
    if found := steps(run_dir / "checkpoints"):
        return f"--resume continues after step {step_of(found[0])}"
    if (run_dir / "config.json").is_file():
        return "nothing is saved yet: --resume starts from the first step"
    return f"nothing is saved, and there is no run in {run_dir}"


def digest(config: str) -> str:
    """SHA-256 of a run's settings."""
    return hashlib.sha256(config.encode()).hexdigest()


def about(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's manifest: "step", "config_sha256", "versions", "files"."""
    document: dict[str, Any] = json.loads((checkpoint / manifest.NAME).read_text())
    return document


def load(
    checkpoint: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    ema: WeightEMA | None = None,
    rank: int = 0,
) -> dict[str, Any]:
    """Loads a step's weights (strictly), optimiser, EMA and generators in place.

    Args:
        rank: of the process whose generators are loaded; unchanged if the run had no such process.

    Returns:
        The `state` given to :func:`snapshot`, with "step".
    """
    model.load_state_dict(_read(checkpoint, "model", model.state_dict()))
    state = json.loads((checkpoint / "state.json").read_text())
    if optimizer is not None:
        _unpack_optimizer(model, optimizer, checkpoint, rank)
    if ema is not None:
        for name, value in _read(checkpoint, "ema", ema.tensors).items():
            ema.tensors[name].copy_(value)
        ema.updates = state["ema_updates"]
    return state


def _read(checkpoint: Path, name: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, or of a folder of shards; sharded where those of `like` are."""
    if (checkpoint / name).is_dir():
        found = sharded.load(checkpoint / name, like)
    else:
        found = load_file(checkpoint / f"{name}.safetensors")
    return {
        key: sharded.parted(value, like[key]) if key in like else value
        for key, value in found.items()
    }


def load_for_evaluation(checkpoint: Path, model: nn.Module) -> None:
    """Loads, strictly, the weights that evaluation uses: a step's EMA if it has one."""
    kept = any(checkpoint.glob("ema*"))
    model.load_state_dict(_read(checkpoint, "ema" if kept else "model", model.state_dict()))


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict on the CPU, unsharded; if it is sharded, every process calls."""
    return {name: _owned(value, False) for name, value in module.state_dict().items()}


def _owned(tensor: Tensor, copy: bool) -> Tensor:
    """On the CPU, unsharded and dense; with memory of its own if `copy`."""
    tensor = sharded.whole(tensor.detach())
    found = tensor.cpu().contiguous()
    return found.clone() if copy and found.data_ptr() == tensor.data_ptr() else found


def _pack_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors under `<field>.<parameter name>`."""
    return {
        f"{field}.{name}": value
        for name, param in model.named_parameters()
        for field, value in optimizer.state.get(param, {}).items()
    }


def _generators(rank: int) -> dict[str, Tensor]:
    """This process's."""
    found = {f"{_RNG}.{rank}.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found[f"{_RNG}.{rank}.cuda"] = torch.cuda.get_rng_state()
    return found


def generators(processes: Processes) -> dict[str, Tensor]:
    """The states of all processes' generators, by name; every process calls it."""
    named: dict[str, Tensor] = {}
    for name, value in _generators(0).items():
        kind = name.rsplit(".", 1)[1]
        for rank, state in enumerate(processes.all_gather(value)):
            named[f"{_RNG}.{rank}.{kind}"] = state
    return named


def _unpack_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path, rank: int
) -> None:
    params = dict(model.named_parameters())
    fields = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # sharded as their weights are
    like = {f"{field}.{name}": p.detach() for name, p in params.items() for field in fields}
    packed = _read(checkpoint, "optimizer", like)
    states = {name: packed.pop(name) for name in list(packed) if name.startswith(f"{_RNG}.")}
    if f"{_RNG}.{rank}.cpu" in states:
        torch.set_rng_state(states[f"{_RNG}.{rank}.cpu"])
    if f"{_RNG}.{rank}.cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"{_RNG}.{rank}.cuda"])
    for key, value in packed.items():
        field, name = key.split(".", 1)
        if name not in params:
            raise KeyError(f"optimizer state of {name!r}: the model has no such parameter")
        param = params[name]
        if value.shape == param.shape:  # fused updates need moments in their weights' layout
            value = torch.empty_like(param).copy_(value)
        optimizer.state[param][field] = value.to(param.device)
    names = {param: name for name, param in params.items()}
    for group in optimizer.param_groups:
        adamw = "betas" in group and not group.get("orthogonal")
        for param in group["params"]:
            state = optimizer.state.get(param)
            if state and ("exp_avg" in state) != adamw:
                raise ValueError(
                    f"optim: {checkpoint} is of another optim.kind or muon_encoder: its state of "
                    f"{names[param]} is {', '.join(state)}"
                )
