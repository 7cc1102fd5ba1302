"""The gradient of the table of 256 rows: ours, torch's own and other ways to sum so many vectors.

    elemdist bench table [--device cuda] [--text FILE] [--rounds 7]
        [--threads 2] [--quick] [--json FILE]

The bytes of text are looked up in a table of width c, in fp32 and in bf16. Errors are the largest
difference from fp64 over the largest sum; a result that is rounded to bf16 has 2e-3.
elemdist/table_gradient.py chooses by these figures.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from data_prep.segment import rows_of
from elemdist.rows import ELEMENTS, PAD
from elemdist.table_gradient import CHOICE, one_hot_product, sorted_sums
from tests.bench.rounds import Peer, Rates, made_text, parser, report, user_text

SHAPES = [(512, 12, 16), (1024, 12, 64), (8192, 12, 64), (65536, 16, 48)]
QUICK = [(64, 12, 16)]
ELEMENTS_OF_A_ROUND = 1_000_000  # a small table's gradient is computed several times
TORCH = "F.embedding"

Way = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def by_embedding(index_K: torch.Tensor, gradient_KC: torch.Tensor) -> torch.Tensor:
    """What torch computes backwards through F.embedding."""
    return torch.ops.aten.embedding_dense_backward(
        gradient_KC, index_K.int(), ELEMENTS, padding_idx=-1, scale_grad_by_freq=False
    )


def by_index_add(index_K: torch.Tensor, gradient_KC: torch.Tensor) -> torch.Tensor:
    sums_RC = gradient_KC.new_zeros(ELEMENTS, gradient_KC.shape[1], dtype=torch.float32)
    return sums_RC.index_add_(0, index_K.int(), gradient_KC.float())


def by_scatter_add(index_K: torch.Tensor, gradient_KC: torch.Tensor) -> torch.Tensor:
    sums_RC = gradient_KC.new_zeros(ELEMENTS, gradient_KC.shape[1], dtype=torch.float32)
    index_KC = index_K.long().unsqueeze(1).expand_as(gradient_KC)
    return sums_RC.scatter_add_(0, index_KC, gradient_KC.float())


def by_segment_reduce(index_K: torch.Tensor, gradient_KC: torch.Tensor) -> torch.Tensor:
    order_K = index_K.argsort(stable=True)
    lengths_R = torch.bincount(index_K.int(), minlength=ELEMENTS)
    return torch.segment_reduce(gradient_KC.float()[order_K], "sum", lengths=lengths_R)


def by_numpy(index_K: torch.Tensor, gradient_KC: torch.Tensor) -> torch.Tensor:
    sums_RC = np.zeros((ELEMENTS, gradient_KC.shape[1]), np.float32)
    np.add.at(sums_RC, index_K.cpu().numpy(), gradient_KC.float().cpu().numpy())
    return torch.from_numpy(sums_RC)


WAYS: dict[str, Way] = {
    TORCH: by_embedding,
    "sorted_sums": lambda index, gradient: sorted_sums(index, gradient, ELEMENTS),
    "one_hot_product": lambda index, gradient: one_hot_product(index, gradient, ELEMENTS),
    "index_add_": by_index_add,
    "scatter_add_": by_scatter_add,
    "sort, segment_reduce": by_segment_reduce,
    "np.add.at": by_numpy,
}


def text_rows(text: bytes, materials: int, v: int) -> np.ndarray:
    """So many rows of the text, from its beginning again where it ends."""
    rows = rows_of(text[: materials * v], v)
    return np.resize(rows, (materials, v))


def measured(
    text: bytes, shape: tuple[int, int, int], dtype: torch.dtype, options: Namespace
) -> Rates:
    """One table; prints the errors."""
    materials, v, width = shape
    device, quick = options.device, options.quick
    index_K = torch.from_numpy(text_rows(text, materials, v).reshape(-1)).to(device)
    generator = torch.Generator().manual_seed(0)
    gradient_KC = torch.randn(len(index_K), width, generator=generator).to(device, dtype)
    exact = torch.zeros(ELEMENTS, width, dtype=torch.float64)
    exact.index_add_(0, index_K.int().cpu(), gradient_KC.double().cpu())
    repeats = 1 if quick else max(1, ELEMENTS_OF_A_ROUND // len(index_K))

    def peer(way: Way) -> Peer:
        def run() -> float:
            for _ in range(repeats):
                way(index_K, gradient_KC)
            if device == "cuda":
                torch.cuda.synchronize()
            return repeats * len(index_K) / 1e6

        return run

    choice, pad = CHOICE[device].__name__, (index_K == PAD).float().mean()
    title = (
        f"{materials:,} materials of {v} bytes, {pad:.0%} PAD; c = {width}, {dtype} on {device},"
        f" {torch.get_num_threads()} threads; the choice: {choice}"
    )
    label = f"{materials:,} x {v}, {str(dtype).removeprefix('torch.')}"
    target = None if quick else 1.0
    table = Rates(title, "M elements/s", [(choice, TORCH, target)], label=label)
    table.measure({name: peer(way) for name, way in WAYS.items()}, 2 if quick else options.rounds)
    errors = {
        name: (way(index_K, gradient_KC).double().cpu() - exact).abs().max() / exact.abs().max()
        for name, way in WAYS.items()
    }
    print(title, "errors: " + ", ".join(f"{name} {e:.0e}" for name, e in errors.items()), sep="\n")
    return table


def main() -> None:
    options = parser(__doc__, 7)
    options.add_argument("--device", choices=sorted(CHOICE), default="cpu", help="default cpu")
    options.add_argument("--text", type=Path, help="any that shard reads; default: made-up prose")
    options.add_argument("--threads", type=int, help="of torch on the CPU; default: its own choice")
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.text:
        text = user_text(chosen.text)
    else:
        with tempfile.TemporaryDirectory() as folder:
            made_text(Path(folder) / "text", 1.0)
            text = (Path(folder) / "text").read_bytes()
    tables = [
        measured(text, shape, dtype, chosen)
        for shape in (QUICK if chosen.quick else SHAPES)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    report(tables, chosen.json)


if __name__ == "__main__":
    main()
