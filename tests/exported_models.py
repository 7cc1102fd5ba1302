"""Models of all kinds with random weights, and their twins in the exported code."""

from __future__ import annotations

from dataclasses import replace

import torch

from data_prep.classes import alone
from elemdist import export
from elemdist.exported import modeling_elemdist as exported
from elemdist.exported.configuration_elemdist import ElemdistConfig
from elemdist.exported.tokenization_elemdist import ElemdistTokenizer
from elemdist.model import Model
from elemdist.model_config import ModelConfig, resolved
from elemdist.model_settings import AblationSettings, CanineSettings, ModelSettings

N, V = 24, 8


def config_of(
    objective: str, pooling: str = "none", wide: bool = False, **changes: object
) -> ModelConfig:
    model = ModelSettings(layers=2, width=64, dropout=0.0, **changes)
    labels = ["a", "b", "c"] if objective == "classify" else None
    return ModelConfig(
        N,
        V,
        objective,
        resolved(model, V),
        pooling=pooling,
        labels=labels,
        segmenter="word",
        wide=wide,
    )


def random_model(config: ModelConfig) -> Model:
    """With weights that no initialisation gives, so that each of them is seen to count."""
    torch.manual_seed(0)
    model = Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def twin_of(model: Model) -> torch.nn.Module:
    """The exported code with the exported weights."""
    config = model.config
    tree = export.config_tree(config, torch.float32)
    twin = getattr(exported, export.CLASSES[config.objective][1])(ElemdistConfig(**tree)).eval()
    twin.load_state_dict(export.weights_of(model))  # strictly: no name too many, none too few
    return twin


def tokenizer_of(config: ModelConfig) -> ElemdistTokenizer:
    return ElemdistTokenizer(**export.tokenizer_tree(config, alone))


CLASSIFIERS = {
    "bert": config_of("classify", "doc"),
    "bert pre-norm": config_of("classify", "max", norm="pre", positions="rotary"),
    "bert modern": config_of(
        "classify", "mean", norm="pre", positions="rotary", activation="geglu", biases=False,
        window=3, global_every=2,
    ),
    "albert": config_of(
        "classify", "doc", backbone="albert", embedding_width=32, activation="gelu_tanh"
    ),
    "wide": config_of("classify", "max", wide=True, ablation=AblationSettings(mixing=16)),
    "uncased": replace(
        config_of(
            "classify", "max", wide=True, uncased=True, ablation=AblationSettings(mixing=16)
        ),
        wide_lead=3.0,
    ),
    "uncased byte": config_of("classify", "mean", input="byte", uncased=True),
    "wide canine": config_of(
        "classify", "doc", wide=True, backbone="canine", ablation=AblationSettings(mixing=16)
    ),
    "canine on bytes of words": config_of("classify", "max", backbone="canine"),
    "canine": config_of(
        "classify", "mean", backbone="canine", input="canine", norm="pre",
        canine=CanineSettings(rate=3, local=10, kernel=5, hashes=4, buckets=100),
    ),
    "decoder": config_of("classify", "last", backbone="decoder", window=4),
    "byte": config_of("classify", "mean", input="byte"),
    "mixing": config_of("classify", "max", ablation=AblationSettings(mixing=40)),
    "tables": config_of("classify", "max", ablation=AblationSettings(tables="per_slot")),
    "slots apart": config_of(
        "classify", "max", ablation=AblationSettings(first_projection="block_diagonal")
    ),
    "canine, slots apart": config_of(
        "classify", "max", backbone="canine",
        ablation=AblationSettings(first_projection="block_diagonal"),
    ),
}  # fmt: skip


PREDICTORS = {
    "bert": config_of("mlm"),
    "bert pre-norm": config_of("mlm", norm="pre"),
    "albert, narrow": config_of("mlm", backbone="albert", embedding_width=32),
    "untied": config_of("mlm", tied=False),
    "tables": config_of("mlm", ablation=AblationSettings(tables="per_slot")),
    "autoregressive": config_of("mlm", head="autoregressive", slot_width=32, slot_layers=2),
    "canine": config_of("mlm", backbone="canine", input="canine"),
    "byte": config_of("mlm", input="byte", activation="geglu"),
    "decoder": config_of("clm", backbone="decoder", norm="pre", positions="rotary"),
    "decoder, autoregressive": config_of("clm", backbone="decoder", head="autoregressive"),
}


def combinations() -> tuple[dict[str, ModelConfig], dict[str, ModelConfig]]:
    """Every backbone with every input: classifiers and predictors, of both heads."""
    classifiers, predictors = {}, {}
    for backbone in ("bert", "albert", "canine", "decoder"):
        for input in ("elementwise", "byte", "canine"):
            shape = {"backbone": backbone, "input": input}
            embedding = {"embedding_width": 32} if backbone != "decoder" else {}
            objective = "clm" if backbone == "decoder" else "mlm"
            for pooling in ("last", "mean"):
                name = f"{backbone}, {input}, {pooling}"
                classifiers[name] = config_of("classify", pooling, **shape, **embedding)
            for head in ("independent", "autoregressive"):
                for tied in (True, False):
                    name = f"{backbone}, {input}, {head}" + ", untied" * (not tied)
                    predictors[name] = config_of(
                        objective, head=head, slot_width=32, tied=tied, **shape, **embedding
                    )
    mixed = AblationSettings(tables="per_slot", mixing=16)
    classifiers["mixed tables"] = config_of("classify", "mean", ablation=mixed, wide=True)
    predictors["mixed tables"] = config_of("mlm", ablation=mixed, embedding_width=32)
    return classifiers, predictors


MORE_CLASSIFIERS, MORE_PREDICTORS = combinations()
