"""``elemdist train``: starts the ranks of this machine, or, where it is one only, is that one."""

from __future__ import annotations

import os
from pathlib import Path

import elemdist
from elemdist.commandline import parse
from elemdist.config import TrainSettings
from elemdist.rank_variables import forget_ranks, in_mpi, starter, without_ranks
from elemdist.slurm_ranks import NOT_IN_IT, in_step, says_step, speaks_for_all
from elemdist.stop import read_end, write_end
from elemdist.train_arguments import understood
from elemdist.units import counted
from launcher import local

TRAIN = Path(elemdist.__file__).with_name("train.py")


def run(argv: list[str], description: str | None) -> int:
    """Trains with the arguments of ``elemdist train``; the exit code.

    Raises:
        UserError: the settings cannot be.
    """
    is_rank = belongs_to_others()
    argv = understood(argv, say_once)
    settings = parse(TrainSettings, argv, "elemdist train", None, description)
    settings.check()
    if is_rank and settings.ranks:
        say_once(f"ranks: {settings.ranks} is not taken, as these ranks are started by others")
    gpus = 0 if settings.device == "cpu" else local.count_gpus()
    if settings.device == "auto" and not gpus and (hidden := local.all_gpus()):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        say_once(f"CUDA_VISIBLE_DEVICES={visible!r} hides {counted(hidden, 'GPU')}: on the CPU")
    ranks = settings.ranks or max(1, gpus)
    if ranks > 1 and not is_rank:
        code = local.start_ranks(TRAIN, argv, ranks)
        end = read_end(settings.run_dir or "")
        if code and end and end["state"] == "running":  # rank 0 could not say it any more
            told = (end["step"], "a rank was lost", code, end["attempt"])
            write_end(settings.run_dir or "", "failed", *told)
        return code
    from elemdist.train import main  # after the settings: it loads torch

    return main(argv)


def say_once(line: str) -> None:
    """Print a line, by one of the ranks that others have started."""
    if speaks_for_all():
        local.say(line)


def belongs_to_others() -> bool:
    """Return whether torchrun, MPI or srun has started this process as one of several ranks. What
    only looks so is taken out of the environment, which is said."""
    if not starter() and (told := forget_ranks()):
        say_once(
            f"{told} are not taken, as this command starts its ranks itself; ranks that others"
            " start run elemdist/train.py"
        )
    if not in_mpi() and says_step(os.environ) and not in_step():
        say_once(NOT_IN_IT)
        for name in os.environ.keys() - without_ranks(os.environ).keys():
            del os.environ[name]
    return "RANK" in os.environ or in_step() or in_mpi()
