"""The model card of an export: what the model is, what it was trained on, its figures, its use."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from elemdist import __version__, metrics_file
from elemdist.artefacts import read_json
from elemdist.checkpoint import Checkpoint
from elemdist.errors import UserError
from elemdist.figure_types import Figures
from elemdist.model import Model
from elemdist.model_config import ModelConfig
from elemdist.plain_text import printable

TASKS = {"mlm": "fill-mask", "clm": "text-generation", "classify": "text-classification"}
MOST_LABELS = 50  # that the card names
MOST_CHARACTERS = 100  # of a name on the card
MARKUP = re.compile(r"([\\`*\[\]#|~$]|(?<!\w)_|_(?!\w))")  # what Markdown reads as more than itself
USE = {
    "classify": """\
from transformers import pipeline

classifier = pipeline("text-classification", {name}, trust_remote_code=True, top_k=3)
print(classifier("Wheat exports rose."))
""",
    "mlm": """\
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name}, trust_remote_code=True)
model = AutoModelForMaskedLM.from_pretrained({name}, trust_remote_code=True)
batch = tokenizer("Wheat exports rose.")
batch["input_ids"][0, 2] = tokenizer.mask_token_id  # the second word
print(tokenizer.decode(model(**batch).logits[0, 2].argmax(-1)))
""",
    "clm": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name}, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained({name}, trust_remote_code=True)
batch = tokenizer("Wheat exports ")
print(tokenizer.decode(model(**batch).logits[0, -1].argmax(-1)))  # what comes next
""",
}
INPUTS = {
    "elementwise": "a position is a material of up to {v} bytes ({segmenter})",
    "byte": "a position is a byte",
    "canine": "a position is a character",
}


def model_card(
    found: Checkpoint, config: ModelConfig, model: Model, figures: str | None, name: str
) -> str:
    """The text of README.md, for a folder called `name`.

    Raises UserError where `figures`, a file of `elemdist eval`, cannot be read.
    """
    shape, settings = config.model, found.settings()
    kind = INPUTS[shape.input].format(v=config.v, segmenter=f"segmenter {config.segmenter}")
    head = {
        "library_name": "transformers",
        "pipeline_tag": TASKS[config.objective],
        "tags": ["elementwise", "tokenizer-free", shape.backbone],
    }
    facts = {
        "backbone": f"{shape.backbone}, {shape.layers} layers, width {shape.width},"
        f" {shape.heads} heads",
        "parameters": f"{sum(x.numel() for x in model.parameters()):,}",
        "input": f"UTF-8 bytes, no vocabulary: {kind}",
        "sequence": f"{config.n} materials at most; longer text is cut",
        "objective": config.objective,
        "training": f"{found.step:,} steps of {settings.batch.global_samples} samples,"
        f" learning rate {settings.optim.lr:g}, seed {settings.seed}",
        "made by": f"elemdist {__version__}",
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {plain(name)}",
        "\n".join(
            ["| | |", "|---|---|", *(f"| {key} | {plain(told)} |" for key, told in facts.items())]
        ),
    ]
    parts += figures_part(found, figures)
    if config.labels:
        shown = [code_span(label) for label in config.labels[:MOST_LABELS]]
        more = len(config.labels) - len(shown)
        parts.append("Labels: " + ", ".join(shown) + (f" and {more} more." if more else "."))
        at = settings.classify.threshold
        holds = f"A label holds where its score reaches {at:g}; several may hold."
        if settings.classify.refit or settings.classify.loss == "squared_hinge":
            holds += " Scores tell which label is the likelier one; they are no probabilities."
        parts.append(holds)
    use = USE[config.objective].format(name=repr(name))
    parts.append(f"## Use\n\nNeeds torch and transformers.\n\n```python\n{use}```")
    return "\n\n".join(parts) + "\n"


def figures_part(found: Checkpoint, figures: str | None) -> list[str]:
    """The section of figures; none where there are none."""
    if figures is None:
        shown, told = last_evaluation(found), "In training, on its evaluation data:"
    else:
        shown, told = read_figures(figures), "By `elemdist eval`, with 95 % intervals:"
    intervals = shown.get("intervals")
    rows = [
        f"| {plain(key)} | {told_value(value)}{between(intervals, key)} |"
        for key, value in shown.items()
        if is_number(value)
    ]
    if not rows:
        return []
    return ["## Figures", told, "\n".join(["| figure | value |", "|---|---|", *rows])]


def is_number(value: Any) -> bool:
    """Return whether it is a figure: a number that is finite."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def shortened(text: str) -> str:
    """Return a text on one line, without what is too long for a name."""
    if len(text) > MOST_CHARACTERS:
        text = text[: MOST_CHARACTERS - 1] + "…"
    return printable(text)


def plain(text: str) -> str:
    """Return a text as Markdown that shows it, in a heading or in a cell of a table."""
    text = MARKUP.sub(r"\\\1", shortened(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code_span(text: str) -> str:
    """Return a text as code in Markdown: between more backticks than it has in a row."""
    text = shortened(text)
    if not text:
        return "(empty)"
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    edge = " " if text[0] in " `" or text[-1] in " `" else ""
    return f"{ticks}{edge}{text}{edge}{ticks}"


def told_value(value: float) -> str:
    """A figure of the model card."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def between(intervals: Any, key: str) -> str:
    """The 95 % interval of a figure, where there is one."""
    bounds = intervals.get(key) if isinstance(intervals, dict) else None
    if not isinstance(bounds, list) or not all(map(is_number, bounds)):
        return ""
    return f" ({' to '.join(f'{one:.4f}' for one in bounds)})"


def last_evaluation(found: Checkpoint) -> dict[str, Any]:
    """The figures of the last evaluation up to a checkpoint; none: empty."""
    try:
        last = metrics_file.last_evaluation(found.path.parent.parent, found.step)
    except UserError:  # a checkpoint that was taken elsewhere
        return {}
    return {key: value for key, value in last.items() if key not in ("kind", "time_s")}


def read_figures(path: str) -> dict[str, Any]:
    """What `elemdist eval --out` wrote. Raises UserError where it is no such file."""
    return dict(read_json(path, Figures, remedy="name a file that `elemdist eval --out` wrote"))
