"""``elemdist train``: starts the ranks of this machine, or, where it is one only, is that one."""

from __future__ import annotations

from pathlib import Path

import elemdist
from elemdist.commandline import parse
from elemdist.config import TrainSettings
from elemdist.slurm_ranks import in_step
from elemdist.stop import read_end, write_end
from launcher import local

TRAIN = Path(elemdist.__file__).with_name("train.py")


def run(argv: list[str], description: str | None) -> int:
    """Trains with the arguments of ``elemdist train``; the exit code.

    Raises:
        UserError: the settings cannot be.
    """
    settings = parse(TrainSettings, argv, "elemdist train", None, description)
    settings.check()
    gpus = 0 if settings.device == "cpu" else local.count_gpus()
    ranks = settings.ranks or max(1, gpus)
    if ranks > 1 and not in_step():
        code = local.start_ranks(TRAIN, argv, ranks)
        end = read_end(settings.run_dir or "")
        if code and end and end["state"] == "running":  # rank 0 could not say it any more
            told = (end["step"], "a rank was lost", code, end["attempt"])
            write_end(settings.run_dir or "", "failed", *told)
        return code
    from elemdist.train import main  # after the settings: it loads torch

    return main(argv)
