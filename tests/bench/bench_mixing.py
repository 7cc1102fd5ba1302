"""The mixing layer, forward and backward: only the units that answer, against all of them.

    elemdist bench mixing [--text FILE] [--rows 3100] [--units 1024 4096] [--threads 1 2]
        [--rounds 7] [--quick] [--json FILE]

The layer of model.ablation.mixing behind the first so many distinct words of a text, which is about
what a batch of news has; its units start at the most frequent words of the whole text, as training
starts them. The texts: what Python brings along, its documentation and the source code of its
modules, or FILE, and made-up prose. Both ways compute the same, which is checked first.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import copy
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.segment import rows_of
from elemdist.embedding import ElementwiseEmbedding, SlotMixing
from elemdist.materials import distinct
from elemdist.table_gradient import lookup
from tests.bench.models import SEED
from tests.bench.rounds import Peer, Rates, made_text, parser, report, user_text

V, WIDTH = 12, 192  # those of the recipes that have the layer
OURS, DENSE = "SlotMixing", "all units"

Way = Callable[[SlotMixing, Tensor], Tensor]


def ours(mixing: SlotMixing, x_UW: Tensor) -> Tensor:
    return mixing(x_UW)[0]


def dense(mixing: SlotMixing, x_UW: Tensor) -> Tensor:
    """The layer as two products with a ReLU in between."""
    unit_UW = F.layer_norm(x_UW, x_UW.shape[-1:])
    return x_UW + F.linear(F.relu(F.linear(unit_UW, mixing.into, mixing.bias)), mixing.out)


def python_text() -> bytes:
    """Some megabytes of prose and code that every Python installation has."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "".join(topics.values()).encode() + b"".join(path.read_bytes() for path in modules)


def made_layer(text: bytes, units: int, rows: int) -> tuple[SlotMixing, Tensor]:
    """The layer, and the vectors of the first so many distinct words, (U, W)."""
    torch.manual_seed(SEED)
    embedding = ElementwiseEmbedding(V, WIDTH, mixing=units, uncased=True)
    rows_NV = torch.from_numpy(rows_of(text, V))
    embedding.answer_to(rows_NV)
    mixing = embedding.mixing
    assert isinstance(mixing, SlotMixing)
    torch.nn.init.normal_(mixing.out, std=0.02)  # 0 would hide what goes wrong behind the units
    rows_UV, place_N = distinct(embedding.seen(rows_NV))
    # Where each of them stands first.
    first_U = torch.full((len(rows_UV),), len(place_N))
    first_U.scatter_reduce_(0, place_N, torch.arange(len(place_N)), "amin")
    x_UW = lookup(embedding.table, rows_UV[first_U.argsort()[:rows]]).flatten(-2)
    return mixing, x_UW.detach().requires_grad_()


def pass_through(way: Way, mixing: SlotMixing, x_UW: Tensor) -> list[Tensor]:
    """The vectors behind the layer, and the gradients of a sum of them: of x and all weights."""
    y_UW = way(mixing, x_UW)
    wish_UW = x_UW.detach()
    return [y_UW.detach(), *torch.autograd.grad(y_UW, [x_UW, *mixing.parameters()], wish_UW)]


def check(mixing: SlotMixing, x_UW: Tensor) -> None:
    """Ends the program if the two ways differ; in fp64, where only a mistake would show."""
    exact, x_UW = copy.deepcopy(mixing).double(), x_UW.detach().double().requires_grad_()
    both = (pass_through(way, exact, x_UW) for way in (ours, dense))
    for got, expected in zip(*both, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def measured(
    name: str, text: bytes, units: int, rows: int, threads: list[int], rounds: int
) -> list[Rates]:
    """One table for each number of threads."""
    mixing, x_UW = made_layer(text, units, rows)
    check(mixing, x_UW)
    inner_UK = F.linear(F.layer_norm(x_UW, x_UW.shape[-1:]), mixing.into, mixing.bias)
    share = (inner_UK > 0).float().mean()

    def peer(way: Way) -> Peer:
        def run() -> float:
            pass_through(way, mixing, x_UW)
            return len(x_UW)

        return run

    tables = []
    for count in threads:
        torch.set_num_threads(count)
        title = (
            f"{len(x_UW):,} distinct words of {name}, {share:.2%} of {units:,} units answer to one;"
            f" width {WIDTH}, {count} thread{'s' * (count > 1)}"
        )
        label = f"{name}, {units:,} units, {count} thr."
        table = Rates(title, "words/s", [(OURS, DENSE, None)], label=label)
        table.measure({OURS: peer(ours), DENSE: peer(dense)}, rounds)
        tables.append(table)
    return tables


def main() -> None:
    options = parser(__doc__, 7)
    options.add_argument("--text", type=Path, help="any that shard reads; default: Python's own")
    options.add_argument("--rows", type=int, default=3100, help="distinct words (default 3100)")
    options.add_argument("--units", type=int, nargs="+", default=[1024, 4096], help="of the layer")
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of torch")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.rows, chosen.units, chosen.threads, chosen.rounds = 500, [256], [1], 2
    real = user_text(chosen.text) if chosen.text else python_text()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made.txt")
        made_text(made, len(real) / 1e6)
        texts = {chosen.text.name if chosen.text else "Python": real, "made": made.read_bytes()}
    tables = []
    for name, text in texts.items():
        for units in chosen.units:
            tables += measured(name, text, units, chosen.rows, chosen.threads, chosen.rounds)
    report(tables, chosen.json)


if __name__ == "__main__":
    main()
