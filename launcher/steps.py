"""Steps of a SLURM job: how srun is started and ended, and what a step runs in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from elemdist.errors import UserError
from launcher import slurm
from launcher.settings import LaunchSettings

HOME = Path(__file__).resolve().parent.parent
SRUN_ENDS_S = 45.0  # a step's processes have KillWait to end, 30 s unless the cluster says other

Process = subprocess.Popen[bytes]


def start_srun(words: list[str], environment: dict[str, str], stdout: int | None = None) -> Process:
    """Starts srun in a session of its own, so that Ctrl-C reaches the launcher alone. `stdout`: a
    file's number, None for that of this process. Raises UserError where there is none."""
    try:
        return subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, start_new_session=True
        )
    except OSError as error:
        raise UserError(slurm.absent(words[0], error)) from None


def end_srun(process: Process) -> None:
    """Ends a step; also one that SLURM cannot end, whose processes may live on."""
    process.terminate()
    try:
        process.wait(SRUN_ENDS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def variables(settings: LaunchSettings) -> dict[str, str]:
    """The variables of slurm.environment."""
    pairs = (entry.partition("=") for entry in settings.slurm.environment)
    return {name: value for name, _, value in pairs}


def step_environment() -> dict[str, str]:
    """This process's, and of SLURM's variables only what says which job a step belongs to: all else
    srun would take for wishes, though they shape another step, or another job."""
    kept = (*slurm.KEPT, "SLURM_JOB_ID", "SLURM_JOBID", "SLURM_JOB_NODELIST", "SLURM_SUBMIT_DIR")
    clean = slurm.clean_environment(local=True)
    return clean | {name: os.environ[name] for name in kept if name in os.environ}


def in_container(settings: LaunchSettings, run_dir: Path, words: list[str]) -> list[str]:
    """A command as it runs in the container of the settings; as it is without one."""
    chosen = settings.slurm
    mounts = [str(run_dir.resolve()), str(HOME), *chosen.mounts]
    if chosen.container == "pyxis":
        pairs = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in mounts)
        return [f"--container-image={chosen.image}", f"--container-mounts={pairs}", "python3",
                *words[1:]]  # fmt: skip
    if chosen.container == "apptainer":
        binds = [f"--bind={mount}" for mount in mounts]
        flags = ["--nv"] if settings.device != "cpu" else []
        return ["apptainer", "exec", *flags, *binds, str(chosen.image), "python3", *words[1:]]
    return words
