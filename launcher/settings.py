"""The settings of a launch: the run itself, what it may take of a cluster, and when to give up."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from elemdist.commandline import as_word, leaf_types, parse, read_recipe, split_arguments
from elemdist.config import TrainSettings
from elemdist.errors import UserError, nearest
from elemdist.json_types import Amount, Bounds, Count, CountOrNone, Processes
from elemdist.remote import public
from elemdist.yaml_text import Scalar, Tree, yaml_text
from launcher.local import count_gpus
from launcher.plan import CONFIGS, PlanSettings

CLUSTERS = CONFIGS / "cluster"


@dataclass
class SlurmSettings:
    """What the jobs ask of SLURM"""

    partition: str | None = None
    """Partition; none: the cluster's default."""
    account: str | None = None
    """Account that is charged; none: the user's default."""
    qos: str | None = None
    """Quality of service."""
    time: str = "24:00:00"
    """Time limit of a job, as SLURM writes it: [days-]hours:minutes:seconds."""
    memory: str | None = None
    """Memory of a node, as 200G; none: the partition's default."""
    cpus_per_rank: Processes = 0
    """CPUs of a rank; 0: SLURM's default."""
    gpus: bool = True
    """Ask for gpus_per_node GPUs a node; off where there are none, or SLURM does not count them."""
    constraint: str | None = None
    """Features that a node must have."""
    exclude: str | None = None
    """Nodes not to be used, as n[1-3,7]."""
    options: list[str] = field(default_factory=list)
    """Other options of sbatch, each as it is written: '["--reservation=ours"]'."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before anything else in a job: '["module load cuda/13.0"]'."""
    environment: list[str] = field(default_factory=list)
    """Variables of the ranks: '["NCCL_DEBUG=WARN"]'. They are written into the run folder: no
    secrets."""
    container: Literal["none", "apptainer", "pyxis"] = "none"
    """What the ranks run in."""
    image: str | None = None
    """The container's image."""
    mounts: list[str] = field(default_factory=list)
    """Folders that the container sees beside the run's own, as '["/data", "/scratch:/tmp"]'."""
    runs: str | None = None
    """Folder for runs that all nodes share: a run_dir that is no absolute path lies in it."""
    save_s: CountOrNone = 300
    """Seconds before the time limit at which the ranks are asked to save and end."""


@dataclass
class RetrySettings:
    """When a run that failed is begun again"""

    most: Count = 20
    """Attempts that may fail, over the whole run."""
    without_progress: Count = 3
    """Give up after so many failures in a row that brought no new checkpoint."""
    pause_s: Amount = 10.0
    """Seconds from a failure to the next attempt in the same job."""


@dataclass
class LaunchSettings(PlanSettings):
    """The launch"""

    cluster: str | None = None
    """Settings of a cluster: NAME for configs/cluster/NAME.yaml, or a file's path."""
    nodes: Annotated[int, Bounds(1, 1 << 20)] = 1
    """Nodes of the run."""
    ranks_per_node: Processes = 0
    """Ranks on a node; 0: as many as GPUs, one without any."""
    spare_nodes: Annotated[int, Bounds(0, 1 << 20)] = 0
    """Nodes held beside them, which take the place of those that die."""
    links: Annotated[int, Bounds(1, 10_000)] = 1
    """Jobs submitted at once, each to go on where the one before it reached its time limit. When
    the last one does, it puts itself back into the queue."""
    sweep: str | None = None
    """YAML file with a list of settings: a run for each of them, in folders of run_dir, submitted
    together as one array."""
    sweep_at_once: CountOrNone = 0
    """Runs of a sweep that may run at the same time; 0: all."""
    dry_run: bool = False
    """Print what would run, and do nothing."""
    local: bool = False
    """Run here and now, without SLURM."""
    preflight: Literal["full", "quick", "none"] = "full"
    """Check every node before the ranks start; quick: without the sum over all nodes, which loads
    torch."""
    preflight_s: Annotated[float, Bounds(1, 1e6)] = 60.0
    """Seconds that the nodes may wait for one another in that check."""
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)

    @property
    def per_node(self) -> int:
        """Ranks on a node."""
        gpus = count_gpus() if self.local else self.gpus_per_node
        return self.ranks_per_node or (1 if self.device == "cpu" else max(1, gpus))

    @property
    def asks_for_gpus(self) -> bool:
        """Whether SLURM is to give the ranks GPUs."""
        return self.slurm.gpus and self.device != "cpu"

    @property
    def world_size(self) -> int:
        """Ranks of the run."""
        return self.nodes * self.per_node

    def run_folder(self) -> Path:
        """Where run_dir is. Raises UserError where it is not set."""
        if not self.run_dir:
            raise UserError("no run folder; add --run-dir DIR, in a folder that all nodes share")
        return Path(os.path.abspath(Path(self.slurm.runs or "") / self.run_dir))

    def check_launch(self) -> None:
        """Raises UserError on what can be said without asking the cluster."""
        self.check_plan()
        self.data.check()
        self.check_schedule()
        limit_s = seconds(self.slurm.time)
        if not self.local and limit_s <= self.slurm.save_s:
            raise UserError(
                f"slurm.time: {self.slurm.time} is not longer than the {self.slurm.save_s} s before"
                " its end at which the ranks are asked to save (slurm.save_s)"
            )
        if self.slurm.container != "none" and not self.slurm.image:
            raise UserError(f"slurm.container: {self.slurm.container} needs --slurm.image IMAGE")
        for entry in self.slurm.environment:
            if not re.match(r"[A-Za-z_]\w*=", entry):
                raise UserError(f"slurm.environment: '{entry}' is not NAME=value")
        for source in [*(one.path for one in self.data.sources()), self.data.eval or ""]:
            if public(source) != source:
                raise UserError(
                    f"data: {public(source)} was given with a password or a signature, which must"
                    " not be written into a run folder; put it into the environment of the job"
                )


def seconds(limit: str) -> int:
    """Of a time limit as SLURM writes it: minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if match is None:
        raise UserError(f"slurm.time: '{limit}' is no time limit; expected [days-]hours:min:sec")
    days, *parts = match.groups()
    given = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, rest = (*given, 0, 0)[:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + rest
    if len(given) == 3:
        return (given[0] * 60 + given[1]) * 60 + given[2]
    return given[0] * 60 + (given[1] if len(given) == 2 else 0)


def cluster_file(name: str) -> Path:
    """The settings of a cluster by name or path. Raises UserError naming those there are."""
    for path in (CLUSTERS / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    known = sorted(path.stem for path in CLUSTERS.glob("*.yaml"))
    raise UserError(
        f"cluster: there is no {CLUSTERS / name}.yaml{nearest(name, known)}; known:"
        f" {', '.join(known)}; or name a file"
    )


def read(argv: list[str], prog: str, description: str | None = None) -> LaunchSettings:
    """The settings of a launch: those of the cluster lie beneath the recipes. Raises UserError."""
    if not any(word in ("-h", "--help") for word in argv):
        name = stated(argv).get("cluster")
        if name is not None:
            argv = [str(cluster_file(name)), *argv]
    return parse(LaunchSettings, argv, prog, None, description)


def stated(argv: list[str]) -> dict[str, str]:
    """What the arguments and their recipes set: dotted key -> text. Raises UserError."""
    known = leaf_types(LaunchSettings)
    found: dict[str, Tree] = {}
    recipes, values = split_arguments(argv, known)
    for recipe in recipes:
        found |= read_recipe(recipe, known)
    if (name := values.get("cluster", found.get("cluster"))) and isinstance(name, Scalar):
        found = read_recipe(str(cluster_file(name.text)), known) | found
    return {key: as_word(tree) for key, tree in (found | values).items()}


def changed(settings: Any, kind: type | None = None) -> dict[str, Any]:
    """What differs from the defaults, as a tree for YAML; of the fields of `kind` alone."""
    names = {item.name for item in dataclasses.fields(kind)} if kind else None
    default, found = type(settings)(), {}
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if names is not None and item.name not in names:
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            if inner := changed(value):
                found[item.name] = inner
        elif value != getattr(default, item.name):
            found[item.name] = plain(value)
    return found


def plain(value: Any) -> Any:
    """For YAML: lists of dataclasses as lists of their values that are set."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tree = dataclasses.asdict(value)
        return {name: one for name, one in tree.items() if one is not None}
    return value


def as_recipe(settings: Any, kind: type | None = None) -> str:
    """A recipe that gives these settings."""
    return yaml_text(changed(settings, kind))


def train_recipe(settings: LaunchSettings) -> str:
    """The recipe of the ranks."""
    return as_recipe(settings, TrainSettings)
