"""A run as a SLURM job, requeued until it is done: `fastequi submit`, by submitit.

Every task of the job is one process of the run. Before the time is up (or the machine is taken)
SIGUSR2 comes, the run saves, and the job is put back in the queue; what starts then goes on.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastequi.runtime.preempt import EXIT_CODE, Preempted


class Job:
    """What a task does, at the first start and after every requeue.

    Args:
        pretrain: what pretrains, a function at the top of a module.
        words: that it takes, a run's folder among them.
        run_dir: that folder.
    """

    def __init__(
        self, pretrain: Callable[[list[str]], None], words: Sequence[str], run_dir: Path
    ) -> None:
        self.pretrain, self.words, self.run_dir = pretrain, list(words), run_dir

    def __call__(self) -> str:
        """How it ended, in words."""
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        resume = ["--resume"] if (self.run_dir / "config.json").is_file() else []
        try:
            self.pretrain([*self.words, *resume])
        except Preempted as notice:
            job = os.environ.get("SLURM_JOB_ID")
            again = notice.exit_code == EXIT_CODE  # else somebody wanted it to stop
            if again and job is not None and os.environ["RANK"] == "0":
                subprocess.run(["scontrol", "requeue", job], check=True)
            return str(notice)
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
        pretrain: what pretrains: `fastequi.cli.commands.pretrain`.
        words: that it takes.
        run_dir: the run's folder, on a disk that all nodes see; logs go to its `slurm/`.
        nodes, gpus: machines, and GPUs (so processes) on each; 0 GPUs is one process on the CPU.
        minutes: time limit of one start.
        partition: "" for the cluster's default.
        notice: seconds before the limit at which the run is asked to save.
        cluster: "slurm", or "local" to try it on this machine.

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
