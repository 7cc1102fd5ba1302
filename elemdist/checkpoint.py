"""Checkpoints that are whole or not there.

A checkpoint is written under a temporary name, every file is hashed, a manifest lists them, and
one rename makes it visible; only then does ``latest`` move. Loading takes the newest one whose
files are all there with the right hashes, and says which ones it passed over.

    RUN/checkpoints/latest                    name of the newest one
    RUN/checkpoints/step-00000500/manifest.json   files, sizes, hashes, step, ranks, data
                                 /model.safetensors   the weights alone, whole
                                 /config.json         the shape of the model
                                 /deepspeed/          weights, optimizer, one file a rank
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from safetensors.torch import load_file, save_file

from elemdist import pretrained
from elemdist.commandline import build
from elemdist.config import TrainSettings
from elemdist.engine import Ranks, on_first
from elemdist.errors import UserError
from elemdist.model import Model
from elemdist.model_config import ModelConfig

FORMAT = "elemdist-checkpoint"
VERSION = 2  # 1 knew one backbone and one input


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    def config(self) -> ModelConfig:
        return ModelConfig.from_json(json.loads((self.path / "config.json").read_text()))

    def settings(self) -> TrainSettings:
        return build(TrainSettings, self.manifest["settings"])

    def weights(self) -> dict[str, torch.Tensor]:
        """Name -> tensor of the whole model, in the precision it was trained in, on the CPU."""
        return load_file(self.path / "model.safetensors")


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file in one step: a reader sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """xxh3_128 of a file's bytes, in hexadecimal."""
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def whole_state(engine: Any) -> dict[str, torch.Tensor]:
    """All weights on the CPU of rank 0, gathered where ZeRO-3 holds them in parts; else empty."""
    from deepspeed.runtime.zero import GatheredParameters

    model = engine.module
    state = {}
    for name, parameter in model.named_parameters():
        with GatheredParameters([parameter], enabled=engine.zero_optimization_stage() == 3):
            if dist.get_rank() == 0:
                state[name] = parameter.detach().to("cpu", copy=True).contiguous()
    return state


def save(
    engine: Any, ranks: Ranks, settings: TrainSettings, step: int, facts: dict[str, Any]
) -> None:
    """Writes the checkpoint after `step` steps; all ranks call it together.

    `facts` are what a resumed run must agree with. Older checkpoints but the newest few go.
    """
    run_dir = Path(settings.run_dir or "")
    folder = run_dir / "checkpoints"
    name = f"step-{step:08d}"
    temporary = folder / f".writing-{name}"
    if ranks.first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(temporary), tag="deepspeed", save_latest=False)
    state = whole_state(engine)
    if ranks.first:
        for script in temporary.glob("*.py"):  # DeepSpeed adds some; a checkpoint is data
            script.unlink()
        save_file(state, temporary / "model.safetensors")
        (temporary / "config.json").write_text(json.dumps(engine.module.config.to_json(), indent=2))
    dist.barrier()
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    mine = {}
    for path in files[ranks.rank :: ranks.world_size]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        mine[str(path.relative_to(temporary))] = [path.stat().st_size, digest(path)]
    parts: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(parts, mine)
    if ranks.first:
        listed = {name: entry for part in parts for name, entry in part.items()}
        manifest = {"format": FORMAT, "version": VERSION, "step": step, "files": listed}
        manifest |= {"facts": facts, "settings": dataclasses.asdict(settings)}
        write_atomically(temporary / "manifest.json", json.dumps(manifest, indent=2))
        # A later attempt may redo a step whose checkpoint was found corrupt.
        shutil.rmtree(folder / name, ignore_errors=True)
        os.rename(temporary, folder / name)
        write_atomically(folder / "latest", name + "\n")
        remove_others(folder, name, settings.keep_last)
    dist.barrier()


def remove_others(folder: Path, newest: str, keep: int) -> None:
    """Keeps `newest` and the `keep` - 1 before it. A later one was passed over at the resume as
    not whole, so it goes too, and never takes the place of a whole one."""
    names = sorted(path.name for path in folder.glob("step-*"))
    place = names.index(newest)
    for name in names[: max(0, place + 1 - keep)] + names[place + 1 :]:
        shutil.rmtree(folder / name)


def flaw(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if it is complete and unharmed."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        files = manifest["files"].items()
        if manifest["format"] != FORMAT or manifest["version"] != VERSION:
            return f"format {manifest['format']} {manifest['version']} is not known"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest.json is missing or cannot be read"
    for name, (size, expected) in files:
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            return f"{name} points out of the checkpoint"
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if digest(file) != expected:
            return f"{name} does not have the bytes that were written"
    return None


def newest(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """(the newest complete checkpoint of a run or None, a line for each one passed over)."""
    passed: list[str] = []
    for path in sorted((run_dir / "checkpoints").glob("step-*"), reverse=True):
        reason = flaw(path)
        if reason is None:
            manifest = json.loads((path / "manifest.json").read_text())
            return Checkpoint(path, manifest), passed
        passed.append(f"checkpoint {path}: {reason}; taking the one before")
    return None, passed


def find(path: str) -> Checkpoint:
    """The checkpoint that `path` names: a run folder's newest, or a checkpoint folder itself.

    Raises UserError if there is none that is whole.
    """
    place = Path(path)
    if not place.is_dir():
        raise UserError(f"{path}: no such folder; expected a run folder of elemdist train")
    if (place / "manifest.json").exists() and (place / "config.json").exists():
        if (reason := flaw(place)) is not None:
            raise UserError(f"checkpoint {path}: {reason}; name another checkpoint or the run")
        return Checkpoint(place, json.loads((place / "manifest.json").read_text()))
    found, passed = newest(place)
    if found is None:
        told = f" ({'; '.join(passed)})" if passed else ""
        raise UserError(f"{path}: no complete checkpoint in it{told}; train a run there first")
    for line in passed:
        print(line)
    return found


def flat(facts: dict[str, Any]) -> dict[str, Any]:
    """A dict of dicts as one with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": entry for inner, entry in flat(value).items()}
        else:
            found[key] = value
    return found


def resume(engine: Any, ranks: Ranks, run_dir: Path, facts: dict[str, Any]) -> int:
    """Loads the newest complete checkpoint into `engine`; the number of steps done, 0 without one.

    Raises UserError where it belongs to another model, other data or another number of ranks.
    """
    # Rank 0 decides for all: a file system may show others a different newest one.
    chosen, passed = on_first(lambda: newest(run_dir))
    if ranks.first:
        for line in passed:
            print(line, flush=True)
    if chosen is None:
        return 0
    then_flat, now_flat = flat(chosen.manifest["facts"]), flat(facts)
    for key, now in now_flat.items():
        then = then_flat.get(key)
        if then != now:
            raise UserError(
                f"checkpoint {chosen.path}: its {key} is {then}, this start's is {now};"
                " resume with the same settings, or begin another run folder"
            )
    loaded, _ = engine.load_checkpoint(str(chosen.path), tag="deepspeed")
    if loaded is None:
        raise UserError(f"checkpoint {chosen.path}: DeepSpeed could not load it")
    return chosen.step


def encoder_settings(config: ModelConfig) -> list[str]:
    """The settings, by their dotted names, that fix what the weights of an encoder mean."""
    model = config.model
    names = "input backbone layers width heads feedforward embedding_width norm positions"
    chosen = [f"model.{name}" for name in (*names.split(), "activation", "biases")]
    if model.input == "elementwise":
        chosen += [f"model.ablation.{part.name}" for part in dataclasses.fields(model.ablation)]
    if model.positions == "rotary":
        chosen.append("model.rotary_base")
    if model.backbone == "canine":
        chosen += ["model.canine.rate", "model.canine.local", "model.canine.kernel"]
    if model.input == "canine":
        chosen += ["model.canine.hashes", "model.canine.buckets"]
    return chosen


def initialise_from(model: Model, path: str) -> str:
    """Takes the encoder's weights of another run, or, from hf:FOLDER, those of a model that
    transformers saved; a line that says which.

    Raises UserError where the shapes differ.
    """
    if path.startswith("hf:"):
        return pretrained.initialise(model, path.removeprefix("hf:"))
    chosen = find(path)
    theirs, ours = chosen.config(), model.config
    misfits = pretrained.Misfits()
    misfits.compare({name: attrgetter(name)(theirs) for name in encoder_settings(theirs)}, ours)
    if theirs.model.input == "elementwise" and theirs.v != ours.v:
        misfits.note(f"its v is {theirs.v}, the shards' is {ours.v}", f"shard with --v {theirs.v}")
    if theirs.symbols != ours.symbols:
        misfits.note("its tokenizer is another one", "set --model.tokenizer to the same one")
    if theirs.model.positions == "learned":
        misfits.note_positions(theirs.positions, ours)
    misfits.refuse(path)
    weights = {k: w for k, w in chosen.weights().items() if k.startswith("encoder.")}
    if theirs.model.positions == "learned":
        positions = weights["encoder.positions.weight"]
        weights["encoder.positions.weight"] = positions[: ours.positions]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith("head.") for name in missing), missing
    return f"encoder weights from {chosen.path} (step {chosen.step})"
