"""``elemdist launch RECIPE.yaml ... --cluster NAME --nodes 4``: check, write the folder, submit.

The job runs slurm/train.sbatch, as by hand; what the settings ask of SLURM are options of sbatch.
A run that is in the queue already is not submitted again, and one that ended goes on.

    RUN/launch/launch.yaml       the whole launch, as resolved
               recipe.yaml       what of it the ranks read
               setup.sh          the lines of slurm.setup
               jobs              the numbers of its jobs, the newest last
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elemdist.atomic import write_atomically
from elemdist.errors import UserError
from launcher import slurm
from launcher.places import shown
from launcher.progress import newest_step
from launcher.settings import LaunchSettings, as_recipe, read, seconds, train_recipe
from launcher.supervise import done_at, note_launch, prepare
from launcher.supervise import run as supervise

HOME = Path(__file__).resolve().parent.parent
SCRIPT = HOME / "slurm" / "train.sbatch"


def run(argv: list[str], description: str | None) -> int:
    """``elemdist launch``; the exit code."""
    settings = read(argv, "elemdist launch", description)
    return launch(settings)


def launch(settings: LaunchSettings) -> int:
    """Checks the settings and submits, or runs here; the exit code. Raises UserError."""
    if not settings.run_dir:
        raise UserError("no run folder; add --run-dir DIR, in a file system that all nodes share")
    settings.run_dir = os.path.abspath(settings.run_dir)
    make_absolute(settings)
    settings.check_launch()
    if not settings.dry_run and (step := done_at(Path(settings.run_dir), settings.steps)):
        print(f"{settings.run_dir}: the run is done, after step {step}; nothing to do")
        return 0
    check_fit(settings)
    if not settings.local:
        nodes = settings.nodes + settings.spare_nodes
        slurm.check_partition(settings.slurm.partition, nodes, seconds(settings.slurm.time))
    if settings.dry_run:
        print("\n".join(told(settings)))
        return 0
    run_dir = Path(settings.run_dir)
    check_writable(run_dir)
    if settings.local:
        return supervise([*as_arguments(settings, run_dir)], None)
    with locked(run_dir):
        return submit(settings, run_dir)


def submit(settings: LaunchSettings, run_dir: Path) -> int:
    """Submits the run unless it is in the queue."""
    name = job_name(run_dir)
    if there := slurm.jobs(name=name):
        job = there[0]
        print(
            f"{run_dir}: in the queue already as job {job.id} ({job.state}), at step"
            f" {newest_step(run_dir)} of {settings.steps}; elemdist status {run_dir} follows it"
        )
        return 0
    prepare(settings)
    note_launch(run_dir)
    words, variables = sbatch_words(settings, run_dir, name), variables_of(run_dir)
    write_atomically(run_dir / "launch" / "setup.sh", setup_text(settings))
    numbers = [slurm.submit(words, variables) for _ in range(settings.links)]
    with open(run_dir / "launch" / "jobs", "a", encoding="utf-8") as file:
        file.write("".join(f"{number}\n" for number in numbers))
    step = newest_step(run_dir)
    begins = f"goes on from step {step}" if step else "begins"
    print(f"{run_dir}: {begins} as job {', '.join(numbers)}; elemdist status {run_dir} follows it")
    return 0


def sbatch_words(settings: LaunchSettings, run_dir: Path, name: str) -> list[str]:
    """The arguments of sbatch: the options, which win over those in the script, and the script."""
    chosen = settings.slurm
    words = [
        f"--job-name={name}", "--dependency=singleton", f"--chdir={HOME}",
        "--export=ALL",
        f"--nodes={settings.nodes + settings.spare_nodes}",
        f"--ntasks-per-node={settings.per_node}", f"--time={chosen.time}",
        f"--signal=B:USR2@{chosen.save_s}", f"--output={run_dir}/launch/job-%j.log",
        "--open-mode=append", "--requeue",
    ]  # fmt: skip
    if settings.spare_nodes:
        words.append("--no-kill")
    if chosen.gpus and settings.device != "cpu":
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
    return [*words, *chosen.options, str(SCRIPT), str(run_dir / "launch" / "launch.yaml")]


def variables_of(run_dir: Path) -> dict[str, str]:
    """What the script is told: --export could not say a path with a comma."""
    setup = str(run_dir / "launch" / "setup.sh")
    return {"ELEMDIST_LAUNCHED": "1", "ELEMDIST_HOME": str(HOME), "ELEMDIST_SETUP": setup}


def setup_text(settings: LaunchSettings) -> str:
    return "".join(f"{line}\n" for line in ["# slurm.setup", *settings.slurm.setup])


def as_arguments(settings: LaunchSettings, run_dir: Path) -> list[str]:
    """The arguments of `elemdist supervise` for these settings."""
    prepare(settings)
    return [str(run_dir / "launch" / "launch.yaml")]


def job_name(run_dir: Path) -> str:
    """The same for every job of a run, and for no other run: SLURM starts one of them at a time."""
    digest = hashlib.blake2b(str(run_dir.resolve()).encode(), digest_size=4).hexdigest()
    return f"elemdist-{re.sub(r'[^A-Za-z0-9_.-]', '-', run_dir.name)[:40]}-{digest}"


def told(settings: LaunchSettings) -> list[str]:
    """What --dry-run prints."""
    run_dir = Path(settings.run_dir or "")
    settings = dataclasses.replace(settings, dry_run=False)
    lines = [f"# {run_dir}/launch/launch.yaml", as_recipe(settings).rstrip()]
    lines += [f"# {run_dir}/launch/recipe.yaml, for the ranks", train_recipe(settings).rstrip()]
    if settings.local:
        recipe = run_dir / "launch" / "launch.yaml"
        return [*lines, "# here:", shown(["elemdist", "supervise", str(recipe)])]
    lines += [f"# {run_dir}/launch/setup.sh", setup_text(settings).rstrip()]
    words = [f"{name}={value}" for name, value in variables_of(run_dir).items()]
    words += ["sbatch", "--parsable", *sbatch_words(settings, run_dir, job_name(run_dir))]
    times = f", {settings.links} times" if settings.links > 1 else ""
    return [*lines, f"# submitted{times}:", "env " + shown(words)]


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


def check_fit(settings: LaunchSettings) -> None:
    """Raises UserError where the recipe does not fit the memory of the GPUs, or the batch or the
    heads do not divide."""
    from launcher.memory_plan import total
    from launcher.plan import shape, take_geometry, tensor_sizes
    from launcher.run_plan import case_of

    settings = dataclasses.replace(settings)  # of which the geometry is filled in
    labels = take_geometry(settings)
    config = shape(settings, subword=False, labels=labels)
    case = case_of(settings, config, tensor_sizes(config))
    need, most = total(case), settings.memory_bytes
    if settings.device != "cpu" and need > most:
        raise UserError(
            f"a rank needs {need / 1e9:.1f} GB, a GPU has {most / 1e9:g} (--gpu, --gpu-memory-gb);"
            " `elemdist plan` with the same arguments tells what takes less"
        )


def check_writable(run_dir: Path) -> None:
    """Makes the run folder. Raises UserError where it cannot be, or cannot be written."""
    probe = run_dir / "launch" / f".probe-{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"run_dir: cannot write into {run_dir}: {error.strerror}; name another with --run-dir"
        ) from None


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """One launch of a run at a time. Raises UserError where another is under way."""
    with open(run_dir / "launch" / "lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run_dir} is being launched by another command; try again") from None
        except OSError:
            pass  # a file system without locks: the queue is asked all the same
        yield
