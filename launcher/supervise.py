"""A run from here on: ``elemdist supervise RECIPE.yaml --run-dir RUN``.

slurm/train.sbatch is this inside a job; ``elemdist launch --local`` is it on one machine.
"""

from __future__ import annotations

import os
import re

from elemdist.errors import Superseded, UserError
from elemdist.slurm_ranks import in_step, step_of_process
from elemdist.yaml_text import TRUE
from launcher.history import done_at, note_launch
from launcher.own_job import number_here, own_job, patiently
from launcher.places import place_of
from launcher.settings import read, stated
from launcher.submission import is_by_hand, of_job, prepare
from launcher.supervisor import Supervisor, say

OF_A_TASK = r"/%a\.yaml$"  # the end of the recipe of a task of an array, whichever it is


def is_local(argv: list[str]) -> bool:
    """Return whether these arguments say that the ranks run on this machine, or ask for help."""
    if any(re.search(OF_A_TASK, word) for word in argv):
        return False
    return "--help" in argv or stated(argv).get("local", "").lower() in TRUE


def run(argv: list[str], description: str | None) -> int:
    """``elemdist supervise``; the exit code."""
    by_hand, job = is_by_hand(argv), None
    if in_step():
        raise UserError(
            "srun has started several of this, which would all supervise one run; submit"
            " slurm/train.sbatch by sbatch, or have srun start `elemdist train`"
        )
    if number_here() and not is_local(argv):
        # A shell that has the number of some job need not be in it.
        job = patiently(own_job, say) if step_of_process(os.getpid()) != "" else own_job()
        argv = [re.sub(OF_A_TASK, f"/{job.task}.yaml", word) for word in argv]
        argv = [*argv, *of_job(stated(argv), job)] if by_hand else argv
    settings = read(argv, "elemdist supervise", description)
    settings.local = settings.local or job is None
    settings.check_launch()
    run_dir, recipe = prepare(settings, job.number if job else 0)
    if (step := done_at(run_dir, settings.steps)) is not None:
        say(f"{run_dir}: the run is done already, after step {step}")
        return 0
    if by_hand and not (job and job.restarts):
        note_launch(run_dir)  # as `elemdist launch` does before it submits
    place = place_of(settings, run_dir, recipe, job)
    if job and job.is_mixed:
        say(f"the job is heterogeneous: its first part, {', '.join(job.nodes)}, is used")
    kept = f"what its ranks print follows, and stays in {run_dir}/attempts"
    say(f"run folder {run_dir}; {f'job {place.job}' if place.job else kept}")
    try:
        return Supervisor(settings, run_dir, place).run()
    except Superseded as error:
        say(str(error))
        return error.code
