"""``elemdist launch RECIPE.yaml --sweep SWEEP.yaml --run-dir DIR ...``: a run for each of a list.

    # SWEEP.yaml: each entry lies above the recipes and the command line
    - {optim.lr: 1e-3}
    - {optim.lr: 3e-4, model.layers: 12}

    DIR/000-learning_rate=0.001/     the run folder of the first, and so on
        tasks/0.yaml                 its launch, as the task of the array with this number reads it

All that are not done and not in the queue are submitted as one array, each task of which ends, goes
on and is requeued for itself. Launching the sweep again does the rest.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from elemdist.atomic import write_atomically
from elemdist.commandline import flatten, leaf_types
from elemdist.errors import UserError
from elemdist.json_text import json_text
from elemdist.setting_values import typed
from elemdist.yaml_text import Tree, read_yaml
from launcher import slurm
from launcher.launch import (
    check_cluster,
    check_fit,
    check_writable,
    complete,
    is_done,
    is_queued,
    launch,
    locked,
    say_not_handed_on,
    say_submitted,
    unchecked,
    write_launch,
)
from launcher.run_jobs import job_name, note_jobs
from launcher.settings import LaunchSettings, as_recipe, read
from launcher.submission import SCRIPT, command, resources, setup_text, variables_of

# An array asks for the same of SLURM for all of its tasks, and is one launch.
SHARED = (
    "sweep", "sweep_at_once", "run_dir", "cluster", "links", "local", "dry_run", "nodes",
    "spare_nodes", "ranks_per_node", "gpus_per_node", "device",
)  # fmt: skip


def launch_sweep(argv: list[str], shared: LaunchSettings) -> int:
    """Checks all runs, and submits those that are neither done nor in the queue; the exit code.
    Raises UserError."""
    if shared.links > 1:
        raise UserError("links: a task of an array goes back into the queue itself; leave it out")
    place = shared.run_folder()
    runs = read_sweep(argv, shared, place)
    if shared.local:
        codes = [launch(one) for one in runs]
        return next((code for code in codes if code), 0)
    for one in runs:
        for line in check_fit(one):
            print(f"{Path(one.run_dir or '').name}: {line}")
    if shared.dry_run:
        print("\n".join(told(shared, runs, place)))
        return 0
    check_cluster(shared)
    check_writable(place / "tasks")
    with locked(place / "tasks"):
        return submit(shared, runs, place)


def read_sweep(argv: list[str], shared: LaunchSettings, place: Path) -> list[LaunchSettings]:
    """The settings of each run. Raises UserError naming the entry that is wrong."""
    path = str(shared.sweep)
    entries, known = read_yaml(path), leaf_types(LaunchSettings)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: expected a list, each entry settings: '- {{seed: 1}}'")
    found = []
    for number, entry in enumerate(entries):
        here = f"{path}: entry {number}"
        given = flatten(entry, known, here)
        values = {name: word(tree, known[name], f"{here}: {name}") for name, tree in given.items()}
        for name in values:
            if name in SHARED or name.startswith("slurm."):
                raise UserError(f"{here}: {name} is the same for all runs of a sweep")
        words = [f"--{name}={value}" for name, value in values.items()]
        try:
            one = read([*argv, *words], "elemdist launch")
            one.sweep, one.sweep_at_once = None, 0
            one.run_dir = str(place / f"{number:03d}-{folder_name(values)}")
            complete(one)
        except UserError as error:
            raise UserError(f"{here}: {error}") from None
        found.append(one)
    return found


def word(tree: Tree, kind: Any, place: str) -> str:
    """Return a setting as a word of a command line. Raises UserError where it does not fit."""
    value = typed(tree, kind, place)
    return value if isinstance(value, str) else json_text(value)


def folder_name(values: dict[str, str]) -> str:
    """The settings of an entry in short."""
    pairs = [f"{name.rpartition('.')[2]}={value}" for name, value in values.items()]
    return re.sub(r"[^A-Za-z0-9_.=,+-]", "-", ",".join(pairs))[:80] or "as-it-is"


def array_words(shared: LaunchSettings, numbers: list[int], place: Path) -> list[str]:
    """The arguments of sbatch for the tasks with these numbers."""
    most = f"%{shared.sweep_at_once}" if shared.sweep_at_once else ""
    return [
        f"--job-name={job_name(place)}", f"--array={','.join(map(str, numbers))}{most}",
        *resources(shared, f"{place}/tasks/job-%A_%a.log"), str(SCRIPT), f"{place}/tasks/%a.yaml",
    ]  # fmt: skip


def told(shared: LaunchSettings, runs: list[LaunchSettings], place: Path) -> list[str]:
    """What --dry-run prints."""
    lines = []
    for number, one in enumerate(runs):
        lines += [f"# {place}/tasks/{number}.yaml", as_recipe(one).rstrip()]
    lines += [f"# {place}/tasks/setup.sh", setup_text(shared).rstrip()]
    variables = variables_of(place / "tasks", place / "tasks" / "%a.yaml")
    words = command(variables, array_words(shared, list(range(len(runs))), place))
    return [*lines, "# submitted:", words, *unchecked(shared)]


def submit(shared: LaunchSettings, runs: list[LaunchSettings], place: Path) -> int:
    """Submits an array of those that have something to do."""
    tasks, waiting = place / "tasks", []
    queued = {job.id.partition("_")[2] for job in slurm.jobs(name=job_name(place))}
    for number, one in enumerate(runs):
        if is_done(one) or is_queued(one, Path(one.run_dir or "")):
            continue
        if str(number) in queued:
            raise UserError(
                f"{place}: task {number} is in the queue with other settings, those in"
                f" {tasks}/{number}.yaml; cancel it first, or take another --run-dir"
            )
        waiting.append(number)
    if not waiting:
        return 0
    for number in waiting:
        run_dir = Path(runs[number].run_dir or "")
        check_writable(run_dir / "launch")
        write_launch(runs[number], run_dir)
        write_atomically(tasks / f"{number}.yaml", as_recipe(runs[number]))
    write_atomically(tasks / "setup.sh", setup_text(shared))
    say_not_handed_on()
    variables = variables_of(tasks, tasks / "%a.yaml")
    job = slurm.submit(array_words(shared, waiting, place), variables)
    for number in waiting:
        run_dir, task = Path(runs[number].run_dir or ""), [f"{job}_{number}"]
        note_jobs(run_dir, task)
        say_submitted(run_dir, task)
    return 0
