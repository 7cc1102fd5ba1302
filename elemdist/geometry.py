"""Do a model and a shard set fit each other? One line says what to change where they do not."""

from __future__ import annotations

import numpy as np

from elemdist.config import TrainSettings
from elemdist.errors import UserError
from elemdist.model_config import ModelConfig, model_config
from elemdist.shards import ShardSet
from elemdist.subword import check_tokenizer, open_symbols


def config_for(settings: TrainSettings, shards: ShardSet) -> ModelConfig:
    """The shape of the model that these settings give on these shards.

    Raises:
        UserError: no possible shape, or the shards lack what the settings ask for.
    """
    model = settings.model
    if (model.input == "subword") != (model.tokenizer is not None):
        raise UserError("model.tokenizer: input subword and its tokenizer.json go together")
    symbols = None
    if model.tokenizer is not None:
        symbols = open_symbols(model.tokenizer)
    config = model_config(
        settings, shards.n, shards.v, shards.labels, shards.manifest.get("segmenter", ""), symbols
    )
    check_geometry(config, shards)
    return config


def check_geometry(config: ModelConfig, shards: ShardSet) -> None:
    """Raises UserError where the model cannot read these shards."""
    if shards.v != config.v or shards.n > config.n:
        raise UserError(
            f"{shards.path}: rows of v={shards.v}, samples of n={shards.n}, but the model was made"
            f" for v={config.v}, n up to {config.n}; shard with --n {config.n} --v {config.v}"
        )
    if config.objective == "classify" and shards.labels is None:
        raise UserError(f"{shards.path}: no labels; shard with --input.labels-field NAME")
    if config.model.tokenizer is not None:
        check_tokenizer(shards.manifest, config.model.tokenizer, shards.path)


def label_columns(labels: list[str], shards: ShardSet) -> np.ndarray:
    """For each label of the shards its place among the model's `labels` (int64).

    Raises UserError on a label that the model does not know.
    """
    place = {label: number for number, label in enumerate(labels)}
    unknown = [label for label in shards.labels or [] if label not in place]
    if unknown:
        shown = ", ".join(repr(label) for label in unknown[:5])
        raise UserError(
            f"{shards.path}: {len(unknown)} label(s) that the model was not trained on: {shown};"
            " drop those from the data, or train on shards that have them"
        )
    return np.array([place[label] for label in shards.labels or []], np.int64)
