"""The files of a checkpoint's tensors: safetensors, written in a stream and read in slices.

A part of an optimizer's state is a flat fp32 tensor named ``KIND/PARAMETER@FIRST``: elements of a
flattened parameter from `FIRST` on. Kinds: ``exp_avg`` and ``exp_avg_sq``, Adam's moments, and
``master``, the fp32 weights of a model that itself is bf16.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from elemdist.errors import UserError
from elemdist.json_text import json_text

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHTS = "model.safetensors"
STATE_FILE = re.compile(r"state/rank-\d{5,}\.safetensors")
PART = re.compile(rf"({'|'.join((MASTER, *MOMENTS))})/(.+)@(\d{{1,18}})")
TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError)

Shape = tuple[int, ...]
Layout = dict[str, tuple[torch.dtype, Shape]]


INSTEAD = "remove or replace this checkpoint, or take another one"


@dataclass(frozen=True)
class TensorFile:
    """A file to be written.

    Attributes:
        name: below the checkpoint's folder; empty: the tensors are only made, since other ranks
            need this one for it, and not written.
        layout: name -> (type, shape), in the order of the tensors.
        tensors: made one at a time, while the file is written.
        metadata: texts about the file, by name; None: none.
    """

    name: str
    layout: Layout
    tensors: Iterable[Tensor]
    metadata: dict[str, str] | None = None


def header(file: TensorFile) -> bytes:
    """Return what comes before the tensors in a safetensors file."""
    entries: dict[str, Any] = {"__metadata__": file.metadata} if file.metadata else {}
    place = 0
    for name, (dtype, shape) in file.layout.items():
        end = place + prod(shape) * dtype.itemsize
        entries[name] = {"dtype": TYPES[dtype], "shape": shape, "data_offsets": [place, end]}
        place = end
    text = json_text(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def contents(file: TensorFile) -> Iterator[bytes | memoryview]:
    """The bytes of the file, in pieces."""
    yield header(file)
    for tensor in file.tensors:
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        yield flat.numpy().data


def write_tensors(path: Path, file: TensorFile, pause: Callable[[], None]) -> tuple[int, str]:
    """Writes a file to the disk itself; its (size in bytes, xxh3_128 in hexadecimal).

    The library's own writer would hold all the tensors in memory a second time. `pause` is called
    between tensors.
    """
    state = xxhash.xxh3_128()
    with open(path, "wb") as out:
        for block in contents(file):
            pause()
            state.update(block)
            out.write(block)
        out.flush()
        os.fsync(out.fileno())
        return out.tell(), state.hexdigest()


@dataclass(frozen=True)
class Part:
    """Elements `first` to `end` of a flattened parameter, under `key` in a file."""

    first: int
    end: int
    file: str
    key: str


# (kind, parameter) -> its parts in the order of their elements
Index = dict[tuple[str, str], list[Part]]


def index_parts(folder: Path, files: Iterable[str], shapes: dict[str, Shape]) -> Index:
    """Where the state of every parameter lies, out of the headers of a checkpoint's files.

    Raises UserError where they are not the whole state and weights of a model whose parameters
    have these shapes.
    """
    index: Index = {}
    path = folder / WEIGHTS
    try:
        check_shapes(tensor_shapes(path), shapes)
        for name in filter(STATE_FILE.fullmatch, files):
            path = folder / name
            for kind, parameter, part in parts_of(path, name):
                if part.end > prod(shapes.get(parameter, (0,))):
                    raise ValueError(f"{part.key} is no part of the model")
                index.setdefault((kind, parameter), []).append(part)
        path = folder / "state"
        for kind in {kind for kind, _ in index} | set(MOMENTS):
            for parameter, shape in shapes.items():
                check_whole(index, kind, parameter, prod(shape))
    except UNREADABLE as error:
        raise unusable(path, error) from None
    return index


def parts_of(path: Path, name: str) -> Iterator[tuple[str, str, Part]]:
    """(kind, parameter, part) of each part in a file. Raises ValueError on one that is none."""
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            entry, match = file.get_slice(key), PART.fullmatch(key)
            shape = entry.get_shape()
            if match is None or len(shape) != 1 or entry.get_dtype() != "F32":
                raise ValueError(f"{key} is no part of a state")
            kind, parameter, first = match.groups()
            yield kind, parameter, Part(int(first), int(first) + shape[0], name, key)


def tensor_shapes(path: Path) -> dict[str, Shape]:
    """Name -> shape of all tensors of a safetensors file, out of its header."""
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        kinds = {one.get_dtype() for one in slices.values()}
        if len(kinds) > 1 or not kinds <= {"F64", "F32", "F16", "BF16"}:
            raise ValueError(f"its numbers are {', '.join(sorted(kinds))}, not of one precision")
        return {name: tuple(one.get_shape()) for name, one in slices.items()}


def check_shapes(theirs: dict[str, Shape], ours: dict[str, Shape]) -> None:
    """Raises ValueError where the tensors of a file are not those of our model."""
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in theirs:
            raise ValueError(f"the model's {name} is not in it")
        if name not in ours:
            raise ValueError(f"its {name} is not in the model")
        if theirs[name] != ours[name]:
            raise ValueError(
                f"its {name} has the shape {theirs[name]}, the model's has {ours[name]}"
            )


def check_finite(weights: dict[str, Tensor]) -> None:
    """Raise ValueError, naming the first tensor, where a weight is NaN or infinite."""
    for name, weight in weights.items():
        if weight.is_floating_point() and weight.numel():
            # One pass without a copy, and NaN comes through both.
            least, most = weight.aminmax()
            if not (least.isfinite() and most.isfinite()):
                raise ValueError(f"its {name} holds NaN or infinite numbers")


def check_whole(index: Index, kind: str, parameter: str, numel: int) -> None:
    """Puts the parts of a parameter in order. Raises ValueError where elements are missing."""
    parts = sorted(index.get((kind, parameter), []), key=lambda part: part.first)
    end = 0
    for part in parts:
        if part.first > end:
            break
        end = max(end, part.end)
    if end < numel:
        raise ValueError(f"{kind} of {parameter} is missing from element {end} on")
    index[kind, parameter] = parts


def unusable(path: Path, error: Exception) -> UserError:
    """The one line for a file of a checkpoint that is not what it should be."""
    reason = " ".join((str(error) or type(error).__name__).split())
    return UserError(f"checkpoint: {path} cannot be used ({reason}); {INSTEAD}")


class PartReader:
    """Reads elements of flattened parameters, and of the files no more than these."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder, self.index = folder, index
        self.open_files: dict[str, Any] = {}

    def slices(self, name: str, key: str) -> Any:
        """A tensor of a file, to be read by slices."""
        if name not in self.open_files:
            self.open_files[name] = safe_open(self.folder / name, framework="pt")
        return self.open_files[name].get_slice(key)

    def read(self, kind: str, parameter: str, first: int, target: Tensor) -> None:
        """Fills the flat `target` with elements from `first` on. The masters of a model that was
        saved in fp32 are its weights. Raises UserError."""
        end = first + target.numel()
        parts = self.index.get((kind, parameter))
        path = self.folder / WEIGHTS
        try:
            if parts is None:
                target.copy_(self.weights(parameter, first, end))
                return
            for part in parts:
                low, high = max(first, part.first), min(end, part.end)
                if low < high:
                    path = self.folder / part.file
                    piece = self.slices(part.file, part.key)[low - part.first : high - part.first]
                    target[low - first : high - first].copy_(piece)
        except UNREADABLE as error:
            raise unusable(path, error) from None

    def weights(self, parameter: str, first: int, end: int) -> Tensor:
        """Elements of a flattened parameter out of the whole weights; the rows that hold them."""
        entry = self.slices(WEIGHTS, parameter)
        shape = entry.get_shape()
        if not shape:
            return self.open_files[WEIGHTS].get_tensor(parameter).view(1)
        row = prod(shape[1:])
        low, high = first // row, -(-end // row)
        return entry[low:high].reshape(-1)[first - low * row : end - low * row]
