"""A run as a SLURM job, requeued until it is done: `fastequi submit`, by submitit.

Every task of the job is one process of the run. Before the time limit (or a preemption) SLURM sends
SIGUSR2, the run saves, and the job is requeued; the next start continues the run.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastequi.runtime.preempt import EXIT_CODE, Preempted


class Job:
    """One task of the job, at the first start and after every requeue.

    Args:
        pretrain: the function to call, at module level.
        words: its arguments, with the run's folder.
        run_dir: that folder.
    """

    def __init__(
        self, pretrain: Callable[[list[str]], None], words: Sequence[str], run_dir: Path
    ) -> None:
        self.pretrain, self.words, self.run_dir = pretrain, list(words), run_dir

    def __call__(self) -> str:
        """Runs the task; returns how it ended, as text."""
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        resume = ["--resume"] if (self.run_dir / "config.json").is_file() else []
        try:
            self.pretrain([*self.words, *resume])
        except Preempted as preempted:
            job = os.environ.get("SLURM_JOB_ID")
            again = preempted.exit_code == EXIT_CODE  # not after Ctrl-C
            if again and job is not None and os.environ["RANK"] == "0":
                subprocess.run(["scontrol", "requeue", job], check=True)
            return str(preempted)
        return "done"


def submit(
    pretrain: Callable[[list[str]], None],
    words: Sequence[str],
    run_dir: Path,
    *,
    nodes: int,
    gpus: int,
    minutes: int,
    partition: str,
    notice: int,
    cluster: str,
) -> Any:
    """Submits a run; submitit's job.

    Args:
        pretrain: `fastequi.cli.pretraining.pretrain`.
        words: its arguments.
        run_dir: the run's folder, on a disk shared by all nodes; logs go to its `slurm/`.
        nodes, gpus: machines, and GPUs (and processes) on each; 0 GPUs: one process on the CPU.
        minutes: time limit of one job.
        partition: "" for the cluster's default.
        notice: seconds before the limit at which the run is asked to save.
        cluster: "slurm", or "local" for a trial on this machine.

    Raises:
        ImportError: submitit is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError("submitting needs submitit: pip install fastequi[slurm]") from error
    executor = submitit.AutoExecutor(run_dir / "slurm", cluster=cluster)
    options: dict[str, Any] = {"nodes": nodes, "tasks_per_node": max(gpus, 1)}
    options |= {"timeout_min": minutes, "name": run_dir.name}
    if gpus and cluster == "slurm":
        options["gpus_per_node"] = gpus
    if cluster == "slurm":
        options |= {"slurm_signal_delay_s": notice}
        if partition:
            options["slurm_partition"] = partition
    executor.update_parameters(**options)
    return executor.submit(Job(pretrain, words, run_dir))
