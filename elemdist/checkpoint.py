"""Checkpoints that are whole or not there, and are read by any number of ranks.

    RUN/checkpoints/latest                    name of the newest one
    RUN/checkpoints/step-00000500/manifest.json   step, files with sizes and hashes, facts, state
                                 /model.safetensors   the weights alone, whole
                                 /config.json         the shape of the model
                                 /state/rank-00000.safetensors ...   see checkpoint_parts.py

checkpoint_writer.py writes them. Loading takes the newest one whose files are all there with the
right hashes, and says which ones it passed over. Nothing in one is trusted to be what it should.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from elemdist import checkpoint_state, pretrained
from elemdist.artefacts import read_json
from elemdist.atomic import write_atomically
from elemdist.checkpoint_files import (
    FORMAT,
    VERSION,
    damage,
    digest,
    flaw,
    read_manifest,
    step_folders,
)
from elemdist.checkpoint_parts import (
    INSTEAD,
    UNREADABLE,
    WEIGHTS,
    check_finite,
    check_shapes,
    unusable,
)
from elemdist.commandline import build
from elemdist.config import TrainSettings
from elemdist.engine import on_first
from elemdist.errors import UserError
from elemdist.json_types import misfit
from elemdist.model import Model
from elemdist.model_config import ModelConfig
from elemdist.weights_header import check_header

__all__ = [
    "FORMAT", "VERSION", "Checkpoint", "digest", "encoder_settings", "find", "flaw",
    "initialise_from", "newest", "open_for_resume", "restore", "write_atomically",
]  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps that were done when it was made."""
        return int(self.manifest["step"])

    @property
    def state(self) -> dict[str, Any]:
        """What the run gave to be kept: its place in the data, its history."""
        return dict(self.manifest.get("state", {}))

    def config(self) -> ModelConfig:
        """The shape of the model. Raises UserError where the file does not say one."""
        path = self.path / "config.json"
        tree = read_json(path, ModelConfig, remedy=INSTEAD)
        try:
            return ModelConfig.from_json(tree)
        except UserError as error:
            raise unusable(path, error) from None

    def settings(self) -> TrainSettings:
        """The settings of the run. Raises UserError where the manifest does not say them."""
        tree = self.manifest.get("settings")
        if (wrong := misfit(tree, TrainSettings)) is not None:
            raise unusable(self.path / "manifest.json", ValueError(f"settings: {wrong}"))
        return build(TrainSettings, tree or {})

    def weights(self) -> dict[str, Tensor]:
        """Name -> tensor of the whole model, in the precision it was trained in, on the CPU.
        Raises UserError where the file cannot be read, or a weight is no finite number."""
        path = self.path / WEIGHTS
        try:
            weights = load_file(path)
            check_finite(weights)
            return weights
        except UNREADABLE as error:
            raise unusable(path, error) from None

    def model(self, config: ModelConfig) -> Model:
        """Return the model of this shape with the weights, in the precision it was trained in.

        The weights' header is compared before the model takes memory: a shape may be anyone's.
        Raises UserError where they are not for each other.
        """
        path = self.path / WEIGHTS
        try:
            check_header(path, config)
        except UNREADABLE as error:
            raise unusable(path, error) from None
        model = Model(config)
        self.load_weights(model, as_trained=True)
        return model

    def load_weights(self, model: nn.Module, as_trained: bool = False) -> None:
        """Puts the weights into a whole model, which takes their precision if `as_trained`, else
        keeps its own. Raises UserError where they are not for it."""
        weights = self.weights()
        if as_trained and weights:
            model.to(next(iter(weights.values())).dtype)
        self.load_into(model, weights)

    def load_into(self, model: nn.Module, weights: dict[str, Tensor], prefix: str = "") -> None:
        """Puts weights of this checkpoint into the part of a model whose names begin so."""
        ours = {k: tuple(w.shape) for k, w in model.state_dict().items() if k.startswith(prefix)}
        try:
            check_shapes({name: tuple(weight.shape) for name, weight in weights.items()}, ours)
        except ValueError as error:
            raise unusable(self.path / WEIGHTS, error) from None
        model.load_state_dict(weights, strict=not prefix)


def newest_first(run_dir: Path) -> list[Path]:
    """A run's checkpoints, whole or not, by step."""
    return [path for _, path in sorted(step_folders(run_dir / "checkpoints").items(), reverse=True)]


def passed_over(path: Path, reason: str) -> str:
    """The line about one that is not whole."""
    return f"checkpoint {path}: {reason}; taking the one before"


def newest(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """(the newest complete checkpoint of a run or None, a line for each one passed over)."""
    passed: list[str] = []
    for path in newest_first(run_dir):
        reason = flaw(path)
        if reason is None:
            return Checkpoint(path, read_manifest(path)[0]), passed
        passed.append(passed_over(path, reason))
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
        return Checkpoint(place, read_manifest(place)[0])
    found, passed = newest(place)
    if found is None:
        told = f" ({'; '.join(passed)})" if passed else ""
        raise UserError(f"{path}: no complete checkpoint in it{told}; train a run there first")
    for line in passed:
        print(line)
    return found


def open_for_resume(run_dir: Path, facts: dict[str, Any]) -> Checkpoint | None:
    """The newest complete checkpoint of a run, None without one; the ranks, who call it together,
    share the work. Rank 0 prints a line for each one passed over.

    Raises UserError, on all ranks, where it belongs to another model or other data.
    """
    # Rank 0 says for all what is there: a file system may show others something else.
    for path in on_first(lambda: newest_first(run_dir)):
        manifest, reason = on_first(lambda path=path: read_manifest(path, True))  # type: ignore[misc]
        if reason is None:
            share = list(manifest["files"].items())[dist.get_rank() :: dist.get_world_size()]
            reasons: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(reasons, damage(path, share))
            reason = next((one for one in reasons if one), None)
        if reason is None:
            check_facts(path, manifest, facts)
            return Checkpoint(path, manifest)
        if dist.get_rank() == 0:
            print(passed_over(path, reason), flush=True)
    return None


def check_facts(path: Path, manifest: dict[str, Any], facts: dict[str, Any]) -> None:
    """Raises UserError where a checkpoint cannot be gone on from."""
    if manifest["version"] != VERSION:
        raise UserError(
            f"checkpoint {path}: it was written by an earlier release (format"
            f" {manifest['version']}), whose runs cannot be gone on with; begin another run folder"
            " with --init-from"
        )
    then_flat, now_flat = flat(manifest["facts"]), flat(facts)
    for key, now in now_flat.items():
        then = then_flat.get(key)
        if then != now:
            raise UserError(
                f"checkpoint {path}: its {key} is {then}, this start's is {now};"
                " resume with the same settings, or begin another run folder"
            )


def restore(engine: Any, checkpoint: Checkpoint) -> None:
    """Puts an engine, fresh or in use, where the one that wrote the checkpoint was: weights,
    optimizer and step. All ranks call it together; their number and ZeRO's settings are free.

    Raises UserError, on all ranks, where the files are not those of this model.
    """
    manifest, step = checkpoint.manifest, checkpoint.step
    checkpoint_state.restore(
        engine, checkpoint.path, list(manifest["files"]), manifest["optimizer_steps"]
    )
    engine.global_steps, engine.skipped_steps = step, 0
    engine.global_samples = step * engine.train_batch_size()
    engine.micro_steps = step * engine.gradient_accumulation_steps()


def flat(facts: dict[str, Any]) -> dict[str, Any]:
    """A dict of dicts as one with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": entry for inner, entry in flat(value).items()}
        else:
            found[key] = value
    return found


def encoder_settings(config: ModelConfig) -> list[str]:
    """The settings, by their dotted names, that fix what the weights of an encoder mean."""
    model = config.model
    names = "input backbone layers width heads feedforward embedding_width norm positions"
    chosen = [f"model.{name}" for name in (*names.split(), "activation", "biases")]
    if model.input in ("elementwise", "byte"):
        chosen.append("model.uncased")
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
    names = encoder_settings(theirs)
    if theirs.v != ours.v and (theirs.model.heads, ours.model.heads) == (theirs.v, ours.v):
        names.remove("model.heads")  # one for each of v, which is the reason
    misfits.compare({name: attrgetter(name)(theirs) for name in names}, ours)
    if theirs.model.input == "elementwise" and theirs.v != ours.v:
        misfits.note(f"its v is {theirs.v}, the shards' is {ours.v}", f"shard with --v {theirs.v}")
    inputs = (theirs.model.input, ours.model.input)
    segmenters = (theirs.segmenter, ours.segmenter)
    if inputs == ("elementwise",) * 2 and all(segmenters) and segmenters[0] != segmenters[1]:
        misfits.note(
            f"its segmenter is {segmenters[0]}, the shards' is {segmenters[1]}",
            f"shard with --segmenter {segmenters[0]}",
        )
    if theirs.symbols and ours.symbols and theirs.symbols != ours.symbols:
        misfits.note(
            f"its tokenizer {theirs.model.tokenizer} has {theirs.symbols.vocabulary} tokens, this"
            f" run's {ours.model.tokenizer} {ours.symbols.vocabulary}, or other numbers of DOC, SEP"
            " and MASK",
            "set --model.tokenizer to the same one",
        )
    if theirs.model.positions == "learned":
        misfits.note_positions(theirs.positions, ours)
    misfits.refuse(path)
    weights = {k: w for k, w in chosen.weights().items() if k.startswith("encoder.")}
    table = "encoder.positions.weight"
    if theirs.model.positions == "learned" and table in weights:
        weights[table] = weights[table][: ours.positions]
    chosen.load_into(model, weights, "encoder.")
    return f"encoder weights from {chosen.path} (step {chosen.step})"
