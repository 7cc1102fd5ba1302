"""Do a model and a shard set fit each other? One line says what to change where they do not."""

from __future__ import annotations

import numpy as np

from elemdist.config import TrainSettings
from elemdist.errors import UserError
from elemdist.mixture import Mixture
from elemdist.model_config import ModelConfig, model_config
from elemdist.plain_text import shell_word
from elemdist.remote import public
from elemdist.shards import ShardSet
from elemdist.subword import check_tokenizer, open_symbols, tokenizer_of


def sets_of(shards: ShardSet | Mixture) -> list[ShardSet]:
    """The sets of a mixture, or the one set."""
    return shards.sets if isinstance(shards, Mixture) else [shards]


def config_for(settings: TrainSettings, shards: ShardSet | Mixture) -> ModelConfig:
    """The shape of the model that these settings give on these shards.

    Raises:
        UserError: no possible shape, the shards lack what the settings ask for, or the sets of a
            mixture differ in what the model reads of them.
    """
    model = settings.model
    if (model.input == "subword") != (model.tokenizer is not None):
        raise UserError("model.tokenizer: input subword and its tokenizer.json go together")
    symbols = None
    if model.tokenizer is not None:
        symbols = open_symbols(model.tokenizer)
    sets = sets_of(shards)
    segmenter = sets[0].manifest.get("segmenter", "word")
    config = model_config(settings, shards.n, shards.v, sets[0].labels, segmenter, symbols)
    for other in sets[1:]:
        check_alike(config, sets[0], other)
    check_geometry(config, shards)
    return config


def check_geometry(config: ModelConfig, shards: ShardSet | Mixture) -> None:
    """Raises UserError where the model cannot read these shards."""
    for one in sets_of(shards):
        path = public(one.path)
        if one.v != config.v or one.n > config.n:
            raise UserError(
                f"{path}: rows of v={one.v}, samples of n={one.n}, but the model was made for"
                f" v={config.v}, n up to {config.n}; shard with --n {config.n} --v {config.v}"
            )
        segmenter = one.manifest.get("segmenter", "")
        # Inputs byte and canine read the text, whichever rows it lies in.
        elementwise = config.model.input == "elementwise"
        if elementwise and segmenter and config.segmenter not in (segmenter, ""):
            raise UserError(
                f"{path}: its segmenter is {segmenter}, but the model was made for"
                f" {config.segmenter}; make it alike: elemdist convert {shell_word(path)}"
                f" --segmenter {config.segmenter} --out DIR"
            )
        if config.objective == "classify" and one.labels is None:
            raise UserError(f"{path}: no labels; shard with --input.labels-field NAME")
        if config.model.tokenizer is not None:
            check_tokenizer(one.manifest, config.model.tokenizer, path)


def check_alike(config: ModelConfig, first: ShardSet, other: ShardSet) -> None:
    """Raises UserError where the model cannot be trained on both sets together."""
    one, two = public(first.path), public(other.path)
    labels = (first.labels, other.labels)  # a set without any is check_geometry's
    if config.objective == "classify" and None not in labels and labels[0] != labels[1]:
        raise UserError(
            f"data.mixture: {two} has other labels than {one}, or in another order; shard its text"
            f" again with --labels-from {shell_word(one)} (elemdist convert {shell_word(two)}"
            " --to jsonl --out DIR gives the text)"
        )
    segmenters = [shards.manifest.get("segmenter", "word") for shards in (first, other)]
    # Inputs byte and canine read the text, whichever rows it lies in.
    if config.model.input == "elementwise" and segmenters[0] != segmenters[1]:
        raise UserError(
            f"data.mixture: {two} is of segmenter {segmenters[1]}, but {one} of {segmenters[0]};"
            f" make it alike: elemdist convert {shell_word(two)} --segmenter {segmenters[0]}"
            " --out DIR"
        )
    tokenizers = [tokenizer_of(shards.manifest) for shards in (first, other)]
    if config.model.input == "elementwise" and tokenizers[0] != tokenizers[1]:
        raise UserError(
            f"data.mixture: {two} was cut by another tokenizer than {one}; shard its text again"
            " with --tokenizer and the one of that set"
        )


def label_columns(labels: list[str], shards: ShardSet) -> np.ndarray:
    """For each label of the shards its place among the model's `labels` (int64).

    Raises UserError on a label that the model does not know.
    """
    place = {label: number for number, label in enumerate(labels)}
    unknown = [label for label in shards.labels or [] if label not in place]
    if unknown:
        shown = ", ".join(repr(label) for label in unknown[:5])
        raise UserError(
            f"{public(shards.path)}: {len(unknown)} label(s) that the model was not trained on:"
            f" {shown}; drop those from the data, or train on shards that have them"
        )
    return np.array([place[label] for label in shards.labels or []], np.int64)
