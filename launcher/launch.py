"""``elemdist launch RECIPE.yaml ... --cluster NAME --nodes 4``: check, write the folder, submit.

The job runs slurm/train.sbatch, as by hand; what the settings ask of SLURM are options of sbatch.
A run that is in the queue already is not submitted again, and one that ended goes on. With --sweep
it is several runs, see sweep.py.

    RUN/launch/launch.yaml       the whole launch, as resolved
               recipe.yaml       what of it the ranks read
               setup.sh          the lines of slurm.setup
               jobs              the numbers of its jobs, the newest last
"""

from __future__ import annotations

import dataclasses
import fcntl
import math
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from elemdist.atomic import write_atomically
from elemdist.errors import UserError
from elemdist.plain_text import printable, shell_word
from elemdist.units import counted, duration
from launcher import slurm
from launcher.history import done_at, note_launch
from launcher.local import count_gpus
from launcher.progress import newest_step
from launcher.run_jobs import job_name, jobs_of, note_jobs
from launcher.settings import LaunchSettings, as_recipe, read, seconds, train_recipe
from launcher.submission import (
    SCRIPT,
    command,
    prepare,
    resources,
    sbatch_words,
    setup_text,
    variables_of,
)
from launcher.supervise import run as supervise


def run(argv: list[str], description: str | None) -> int:
    """``elemdist launch``; the exit code."""
    settings = read(argv, "elemdist launch", description)
    if settings.sweep:
        from launcher.sweep import launch_sweep

        return launch_sweep(argv, settings)
    return launch(settings)


def launch(settings: LaunchSettings) -> int:
    """Checks the settings and submits, or runs here; the exit code. Raises UserError."""
    run_dir = complete(settings)
    if not settings.dry_run and is_done(settings):
        return 0
    lines = check_fit(settings)
    if settings.dry_run:
        print("\n".join([*told(settings), *lines, *unchecked(settings)]))
        return 0
    if not settings.local:
        check_cluster(settings)
    check_writable(run_dir / "launch")
    print("".join(f"{line}\n" for line in lines), end="")
    if settings.local:
        prepare(settings)
        return supervise([str(run_dir / "launch" / "launch.yaml")], None)
    with locked(run_dir / "launch"):
        return submit(settings, run_dir)


def complete(settings: LaunchSettings) -> Path:
    """Makes all paths absolute, and checks what needs neither model nor cluster; the run folder.
    Raises UserError."""
    run_dir = settings.run_folder()
    settings.run_dir = str(run_dir)
    make_absolute(settings)
    settings.check_launch()
    return run_dir


def is_done(settings: LaunchSettings) -> bool:
    """Whether there is nothing to do, which is said."""
    step = done_at(Path(settings.run_dir or ""), settings.steps)
    if step is not None:
        print(f"{settings.run_dir}: the run is done, after step {step}; nothing to do")
    return step is not None


def check_cluster(settings: LaunchSettings) -> None:
    """Raises UserError where there is no SLURM, or its partition cannot run this."""
    nodes = settings.nodes + settings.spare_nodes
    slurm.check_partition(settings.slurm.partition, nodes, seconds(settings.slurm.time))
    gpus = f", {counted(settings.gpus_per_node, 'GPU')}" if settings.asks_for_gpus else ""
    asked = f"{counted(nodes, 'node')} with {counted(settings.per_node, 'rank')}{gpus} each"
    slurm.check_request([*resources(settings, os.devnull), str(SCRIPT)], asked)


def unchecked(settings: LaunchSettings) -> list[str]:
    """For --dry-run, which need not be on the cluster: what could not be asked there."""
    if settings.local:
        return []
    try:
        check_cluster(settings)
    except UserError as error:
        return [f"# the cluster would refuse it, or is not here: {error}"]
    return []


def submit(settings: LaunchSettings, run_dir: Path) -> int:
    """Submits the run unless it is in the queue."""
    if is_queued(settings, run_dir):
        return 0
    write_launch(settings, run_dir)
    words = sbatch_words(settings, run_dir, job_name(run_dir))
    folder = run_dir / "launch"
    variables = variables_of(folder, folder / "launch.yaml")
    say_not_handed_on()
    numbers = [slurm.submit(words, variables) for _ in range(settings.links)]
    note_jobs(run_dir, numbers)
    say_submitted(run_dir, numbers)
    return 0


def say_not_handed_on() -> None:
    """Name what this shell asks of a job, if it does: the settings alone say that."""
    if names := slurm.not_handed_on():
        print(f"not taken from this shell: {', '.join(names)}; --slurm.* says what a job needs")


def is_queued(settings: LaunchSettings, run_dir: Path) -> bool:
    """Whether the run is in the queue already, which is said."""
    there = jobs_of(run_dir)
    if there:
        print(
            f"{printable(str(run_dir))}: in the queue already as job {there[0].id}"
            f" ({there[0].state}), at step {newest_step(run_dir)} of {settings.steps};"
            f" elemdist status {shell_word(run_dir)} follows it"
        )
    return bool(there)


def write_launch(settings: LaunchSettings, run_dir: Path) -> None:
    """What the job reads."""
    prepare(settings)
    note_launch(run_dir)
    write_atomically(run_dir / "launch" / "setup.sh", setup_text(settings))


def say_submitted(run_dir: Path, numbers: Sequence[str]) -> None:
    """Tells where a run begins, and as which jobs."""
    step = newest_step(run_dir)
    begins = f"goes on from step {step}" if step else "begins"
    jobs = f"{printable(str(run_dir))}: {begins} as job {', '.join(numbers)}"
    print(f"{jobs}; elemdist status {shell_word(run_dir)} follows it")


def told(settings: LaunchSettings) -> list[str]:
    """What --dry-run prints."""
    run_dir = Path(settings.run_dir or "")
    settings = dataclasses.replace(settings, dry_run=False)
    lines = [f"# {run_dir}/launch/launch.yaml", as_recipe(settings).rstrip()]
    lines += [f"# {run_dir}/launch/recipe.yaml, for the ranks", train_recipe(settings).rstrip()]
    if settings.local:
        recipe = run_dir / "launch" / "launch.yaml"
        return [*lines, "# here:", shlex.join(["elemdist", "supervise", str(recipe)])]
    lines += [f"# {run_dir}/launch/setup.sh", setup_text(settings).rstrip()]
    words = sbatch_words(settings, run_dir, job_name(run_dir))
    times = f", {settings.links} times" if settings.links > 1 else ""
    folder = run_dir / "launch"
    variables = variables_of(folder, folder / "launch.yaml")
    return [*lines, f"# submitted{times}:", command(variables, words)]


def make_absolute(settings: LaunchSettings) -> None:
    """A job may start in another folder."""
    from elemdist.remote import is_url

    data = settings.data
    for source in data.mixture:
        source.path = source.path if is_url(source.path) else os.path.abspath(source.path)
    for name in ("train", "eval"):
        path = getattr(data, name)
        if path and not is_url(path):
            setattr(data, name, os.path.abspath(path))
    for owner, name in [(settings.zero, "nvme_path"), (settings.model, "tokenizer")]:
        if path := getattr(owner, name):
            setattr(owner, name, os.path.abspath(path))
    start = settings.init_from
    if start and not start.startswith("hf:"):
        settings.init_from = os.path.abspath(start)
    elif start:
        settings.init_from = "hf:" + os.path.abspath(start.removeprefix("hf:"))


def check_fit(settings: LaunchSettings) -> list[str]:
    """How the ranks share the batch, and how long the run takes, as lines.

    Raises:
        UserError: the recipe does not fit the memory of the GPUs, or the batch or the heads do not
            divide.
    """
    from launcher.memory_plan import total
    from launcher.plan import shape, take_geometry, tensor_sizes
    from launcher.run_plan import batch_of, case_of, work_of

    settings = dataclasses.replace(settings)  # of which the geometry is filled in
    labels = take_geometry(settings)
    config = shape(settings, subword=False, labels=labels)
    case = case_of(settings, config, tensor_sizes(config))
    lines = ["batch: " + batch_of(settings, config).chain(config.n * config.v)]
    if settings.device == "cpu" or (settings.local and not count_gpus()):
        return lines
    need, most = total(case), settings.memory_bytes
    if need > most:
        raise UserError(
            f"a rank needs {need / 1e9:.1f} GB, a GPU has {most / 1e9:g} (--gpu, --gpu-memory-gb);"
            " `elemdist plan` with the same arguments tells what takes less"
        )
    whole_s = work_of(settings, case).seconds * settings.steps
    lines.append(f"time: {duration(whole_s)} at {settings.mfu:.0%} of the peak (--mfu)")
    if settings.local:
        return lines
    jobs = jobs_needed(whole_s, seconds(settings.slurm.time), settings.slurm.save_s)
    lines[-1] += f": {counted(jobs, 'job')} of {settings.slurm.time}"
    if jobs > settings.links:
        lines.append(
            f"it goes back into the queue at its time limit; --links {jobs} spares it the waiting"
        )
    return lines


def jobs_needed(whole_s: float, limit_s: int, save_s: int) -> int:
    """Jobs one after the other, each of which stops so long before its limit."""
    return max(1, math.ceil(whole_s / max(1, limit_s - save_s)))


def check_writable(folder: Path) -> None:
    """Makes a folder of a run. Raises UserError where it cannot be, or cannot be written."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"run_dir: cannot write into {folder}: {error.strerror}; name another with --run-dir"
        ) from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One launch of a run at a time. Raises UserError where another is under way."""
    with open(folder / "lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder.parent} is being launched by another command; try again"
            ) from None
        except OSError:
            pass  # a file system without locks: the queue is asked all the same
        yield
