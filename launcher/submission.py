"""What is written into a run folder before its job, and given to sbatch: slurm/train.sbatch, as by
hand, and options that win over its own."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from elemdist.atomic import write_atomically
from elemdist.errors import UserError
from launcher.local import count_gpus
from launcher.own_job import OwnJob
from launcher.settings import LaunchSettings, as_recipe, train_recipe

HOME = Path(__file__).resolve().parent.parent
SCRIPT = HOME / "slurm" / "train.sbatch"
LAUNCHED = "ELEMDIST_LAUNCHED"  # in the environment of a job: the recipe that it was launched with


def sbatch_words(settings: LaunchSettings, run_dir: Path, name: str) -> list[str]:
    """The arguments of sbatch: the options, which win over those in the script, and the script."""
    recipe = run_dir / "launch" / "launch.yaml"
    log = run_dir / "launch" / "job-%j.log"
    only = ["--dependency=singleton"]  # so that links of a chain follow each other
    return [f"--job-name={name}", *only, *resources(settings, str(log)), str(SCRIPT), str(recipe)]


def resources(settings: LaunchSettings, log: str) -> list[str]:
    """The options of sbatch that say what a job of the run needs."""
    chosen = settings.slurm
    words = [
        f"--chdir={HOME}", "--export=ALL",
        f"--nodes={settings.nodes + settings.spare_nodes}",
        f"--ntasks-per-node={settings.per_node}", f"--time={chosen.time}",
        f"--signal=B:USR2@{chosen.save_s}", f"--output={log}", "--open-mode=append", "--requeue",
    ]  # fmt: skip
    if settings.spare_nodes:
        words.append("--no-kill")
    if settings.asks_for_gpus:
        words.append(f"--gpus-per-node={settings.gpus_per_node}")
    for option, value in [
        ("partition", chosen.partition),
        ("account", chosen.account),
        ("qos", chosen.qos),
        ("mem", chosen.memory),
        ("constraint", chosen.constraint),
        ("exclude", chosen.exclude),
        ("cpus-per-task", chosen.cpus_per_rank or None),
    ]:
        if value is not None:
            words.append(f"--{option}={value}")
    return [*words, *chosen.options]


def variables_of(folder: Path, recipe: Path) -> dict[str, str]:
    """What the script is told, with the setup.sh of this folder and the recipe that it is given, by
    which it knows that these are meant for it: --export could not say a path with a comma."""
    setup = str(folder / "setup.sh")
    return {LAUNCHED: str(recipe), "ELEMDIST_HOME": str(HOME), "ELEMDIST_SETUP": setup}


def is_by_hand(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the job with these arguments was submitted by sbatch itself, maybe in one that
    was launched."""
    return list(argv) != [environment.get(LAUNCHED)]


def of_job(known: Mapping[str, str], job: OwnJob) -> list[str]:
    """Options for what the surrounding job has, which was submitted by hand, except for the
    settings `known` already."""
    spare = known.get("spare_nodes", "0")
    nodes = len(job.nodes) - (int(spare) if spare.isdigit() else 0)
    found = {"slurm.gpus": str(bool(job.gpus)).lower(), "nodes": str(max(1, nodes))}
    if gpus := job.gpus or count_gpus():  # some clusters do not count them
        found["gpus_per_node"] = str(gpus)
    else:
        found["ranks_per_node"] = str(job.tasks)
    ranks = known.get("ranks_per_node") or str(gpus or job.tasks)
    # Releases of SLURM differ in whether a step takes this from its job.
    if ranks.isdigit() and int(ranks) and (cpus := job.tasks * job.cpus // int(ranks)) > 1:
        found["slurm.cpus_per_rank"] = str(cpus)
    return [f"--{name}={value}" for name, value in found.items() if name not in known]


def command(variables: dict[str, str], words: Sequence[str]) -> str:
    """The submission as a line for a shell."""
    pairs = [f"{name}={value}" for name, value in variables.items()]
    return shlex.join(["env", *pairs, "sbatch", "--parsable", *words])


def setup_text(settings: LaunchSettings) -> str:
    """The lines of slurm.setup, for the script."""
    return "".join(f"{line}\n" for line in ["# slurm.setup", *settings.slurm.setup])


def prepare(settings: LaunchSettings, number: int = 0) -> tuple[Path, Path]:
    """(run folder, recipe of the ranks): made, with what the run is. A run without a name has that
    of its job, by its `number`. Raises UserError."""
    if settings.run_dir is None:
        job = f"job-{number or os.getpid()}"
        settings.run_dir = job if settings.slurm.runs else f"runs/{job}"
    run_dir = settings.run_folder()
    settings.run_dir = str(run_dir)
    folder = run_dir / "launch"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "launch.yaml", as_recipe(settings))
        write_atomically(folder / "recipe.yaml", train_recipe(settings))
    except OSError as error:
        raise UserError(
            f"run_dir: cannot write into {folder}: {error.strerror}; name a folder that all nodes"
            " can write with --run-dir"
        ) from None
    return run_dir, folder / "recipe.yaml"
