"""``elemdist export``: a trained model as a folder that transformers loads without elemdist.

    DIR/model.safetensors, config.json         weights and shape
    DIR/modeling_elemdist.py and others        the model's code, see elemdist/exported/
    DIR/tokenizer_config.json                  how text is cut, for tokenization_elemdist.py
    DIR/README.md                              the model card
    DIR/model.onnx                             with --onnx

The weights keep their names, the encoder's under `elemdist.`, the head's under a name of its class.
A first projection that keeps the slots apart becomes the dense matrix that it amounts to.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elemdist import checkpoint
from elemdist.atomic import new_folder
from elemdist.blocks import SlotProjection
from elemdist.checkpoint_parts import WEIGHTS, TensorFile, write_tensors
from elemdist.errors import UserError
from elemdist.export_card import model_card
from elemdist.export_settings import ExportSettings
from elemdist.json_text import json_text
from elemdist.model import Model
from elemdist.model_config import ModelConfig
from elemdist.os_errors import reason_of
from elemdist.plain_text import printable

CODE = Path(__file__).parent / "exported"
CLASSES = {
    "mlm": ("AutoModelForMaskedLM", "ElemdistForMaskedLM"),
    "clm": ("AutoModelForCausalLM", "ElemdistForCausalLM"),
    "classify": ("AutoModelForSequenceClassification", "ElemdistForSequenceClassification"),
}
# The head's name in each class: a file of one class gives another no weights by accident.
HEADS = {"mlm": "mlm_head", "clm": "clm_head", "classify": "classifier"}
PAD_CODE = 0  # CANINE's code point for padding; all other inputs have bytes, and PAD
# -> the code points that stand in no word, as inclusive ranges
AloneRanges = Callable[[], list[tuple[int, int]]]


def run(settings: ExportSettings, alone: AloneRanges) -> int:
    """Run ``elemdist export``; return the exit code."""
    settings.check()
    out = Path(settings.out or "")
    if os.path.lexists(out):
        raise UserError(f"out: {out} exists; name a folder to be made")
    if not out.resolve().parent.is_dir():
        raise UserError(f"out: there is no folder {out.resolve().parent}; make it first")
    found = checkpoint.find(settings.run or "")
    config = found.config()
    check(config)
    try:
        with new_folder(out.resolve().parent / out.name) as folder:
            write(folder, found, config, settings, alone)
    except OSError as error:
        raise UserError(f"out: {out} cannot be written: {reason_of(error)}") from None
    auto, _ = CLASSES[config.objective]
    print(f"{printable(str(out))}: the {config.objective} model of step {found.step}, loaded by")
    print(f"  transformers.{auto}.from_pretrained({str(out)!r}, trust_remote_code=True)")
    return 0


def write(
    folder: Path,
    found: checkpoint.Checkpoint,
    config: ModelConfig,
    settings: ExportSettings,
    alone: AloneRanges,
) -> None:
    """Write all files of an export into a folder. Raises OSError and UserError."""
    model = found.model(config)
    weights = weights_of(model)
    layout = {name: (weight.dtype, tuple(weight.shape)) for name, weight in weights.items()}
    file = TensorFile(WEIGHTS, layout, weights.values(), {"format": "pt"})
    write_tensors(folder / WEIGHTS, file, lambda: None)
    write_json(folder / "config.json", config_tree(config, next(model.parameters()).dtype))
    write_json(folder / "tokenizer_config.json", tokenizer_tree(config, alone))
    for source in sorted(CODE.glob("*_elemdist.py")):
        (folder / source.name).write_bytes(source.read_bytes())  # its permissions are umask's
    card = model_card(found, config, model, settings.figures, Path(settings.out or "").name)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if settings.onnx:
        from elemdist.export_onnx import write_onnx  # here, as few have what it needs

        write_onnx(folder, config)


def check(config: ModelConfig) -> None:
    """Raises UserError on a model whose input needs more than the exported code has."""
    model = config.model
    if model.input == "subword":
        raise UserError("export: models of input subword are there to compare with; take others")
    if config.segmenter not in ("word", "char", "byte"):
        raise UserError(
            f"export: segmenter {config.segmenter} cuts by libraries that the exported code does"
            " not have; shard with --segmenter word, char or byte"
        )
    if model.ablation.slots == "shuffled":
        raise UserError("export: model.ablation.slots shuffled is an experiment; it stays here")


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Writes JSON as transformers does."""
    path.write_text(json_text(tree, indent=2) + "\n", encoding="utf-8")


def weights_of(model: Model) -> dict[str, Tensor]:
    """The weights by the names that the exported code has for them."""
    weights = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, SlotProjection):
            weights[f"{name}.weight"] = dense_projection(module)
    places = {"encoder": "elemdist", "head": HEADS[model.config.objective]}
    return {
        ".".join([places[part], rest]): weight.contiguous()
        for (part, _, rest), weight in ((name.partition("."), x) for name, x in weights.items())
    }


def dense_projection(module: SlotProjection) -> Tensor:
    """The matrix (3 W, W) of a linear layer that does the same."""
    slots, part, _ = module.weight.shape
    # (V, C in, 3, C out) into (3, V out, C out, V in, C in), whose diagonal over V is filled.
    weight = module.weight.detach().unflatten(2, (3, part)).permute(2, 0, 3, 1)
    dense = weight.new_zeros(3, slots, part, slots, part)
    for slot in range(slots):
        dense[:, slot, :, slot] = weight[:, slot]
    return dense.view(3 * slots * part, slots * part)


def config_tree(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What ElemdistConfig reads."""
    model = config.model
    same = (
        "input uncased backbone layers width heads feedforward embedding_width dropout norm"
        " positions rotary_base activation biases head slot_width slot_layers window global_every"
    )
    auto_class, architecture = CLASSES[config.objective]
    classes = {"AutoModel": "ElemdistModel", auto_class: architecture}
    auto, classifier = CLASSES["classify"]
    classes[auto] = classifier  # with labels of its own, whatever the model was trained for
    labels = config.labels or []
    pooling = "last" if config.causal else "doc"
    return {
        "model_type": "elemdist",
        "architectures": [architecture],
        "auto_map": {
            "AutoConfig": "configuration_elemdist.ElemdistConfig",
            **{auto: f"modeling_elemdist.{name}" for auto, name in classes.items()},
        },
        "torch_dtype": str(dtype).removeprefix("torch."),
        **{name: getattr(model, name) for name in same.split()},
        "n": config.n,
        "v": config.v,
        "mixing": model.ablation.mixing,
        "table_per_slot": model.ablation.tables == "per_slot",
        "max_positions": config.positions if model.positions == "learned" else 0,
        "tied": config.tied,
        "pooling": config.pooling if labels else pooling,
        "wide": config.wide,
        "wide_lead": config.wide_lead,
        "canine": vars(model.canine),
        "pad_token_id": PAD_CODE if model.input == "canine" else 255,
        **(
            {
                "problem_type": "multi_label_classification",
                "id2label": {str(number): label for number, label in enumerate(labels)},
                "label2id": {label: number for number, label in enumerate(labels)},
            }
            if labels
            else {}
        ),
    }


def tokenizer_tree(config: ModelConfig, alone: AloneRanges) -> dict[str, Any]:
    """What ElemdistTokenizer reads."""
    return {
        "tokenizer_class": "ElemdistTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_elemdist.ElemdistTokenizer", None]},
        "n": config.n,
        "v": config.v,
        "segmenter": config.segmenter,
        "input": config.model.input,
        "alone": alone() if config.segmenter == "word" else [],
    }
