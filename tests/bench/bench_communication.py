"""Bytes that a rank sends in an optimizer step: ours against its twin with 30,522 tokens, ZeRO 1-3.

    elemdist bench communication [--layers 2] [--ranks 2] [--quick] [--json FILE]

Both models are the base recipe's, 768 wide, in fp32, with so many of its layers; DeepSpeed trains
them on gloo ranks, and the meter of elemdist/communication.py counts. The formula is 4 bytes a
parameter, (p - 1) / p of them sent in each pass over all parameters: in stages 1 and 2 an
all-reduce of the gradients, which is two, and the gathering of the parameters; in stage 3 a
reduce-scatter and a gathering, as long as DeepSpeed keeps the parameters from the forward to the
backward pass (up to 10^9 of them). For all 12 layers the formula stands alone.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from elemdist.batch import Batch
from elemdist.batch_plan import plan_batch
from elemdist.communication import Meter, Traffic
from elemdist.config import TrainSettings
from elemdist.engine import Ranks, build_engine, join_ranks
from elemdist.model import Model
from elemdist.model_config import ModelConfig, Symbols, model_config
from elemdist.model_settings import ModelSettings
from elemdist.objectives import targets_of
from elemdist.run_settings import BatchSettings, ZeroSettings
from launcher.local import start_ranks
from tests.bench.models import BERT_VOCABULARY, MASK_RATE, SEED, full_batch
from tests.bench.rounds import Rates, report

N, V, BASE_LAYERS, BASE_WIDTH = 512, 12, 12, 768
ROWS = 32  # of the batch; the bytes do not hang on it
TOKENS = Symbols(doc=101, sep=102, mask=103, vocabulary=BERT_VOCABULARY)
OURS, TWIN = "elementwise", "subword"
PASSES = {1: 3, 2: 3, 3: 2}  # by stage, over all parameters
STEPS = 2
FP32_BYTES = 4
HEAD = (
    f"{'':12} {'layers':>6} {'ZeRO':>5} {'parameters':>13} {'embedding':>10} {'formula, MB':>12}"
    f" {'measured, MB':>12} {'':>8}"
)


def shape_of(kind: str, layers: int, width: int) -> ModelConfig:
    settings = TrainSettings(model=ModelSettings(input=kind, layers=layers, width=width))
    return model_config(settings, N, V, symbols=TOKENS if kind == TWIN else None)


def batch_of(config: ModelConfig) -> Batch:
    """One sample of random rows, or of random tokens."""
    batch = full_batch(ROWS, ROWS, V, torch.device("cpu"))
    if config.symbols is None:
        return batch
    ids_T1 = torch.randint(1000, config.elements, (ROWS, 1), dtype=torch.int32)
    return replace(batch, rows_TV=ids_T1, bytes_T=torch.full((ROWS,), 4, dtype=torch.int32))


def measure(config: ModelConfig, stage: int, ranks: Ranks) -> Traffic:
    """What this rank sends in STEPS steps of DeepSpeed; the first one, which sets up, comes
    before."""
    settings = TrainSettings(
        model=config.model,
        batch=BatchSettings(global_samples=ranks.world_size, micro_samples=1),
        zero=ZeroSettings(stage=stage),
        precision="fp32",
    )
    torch.manual_seed(SEED)
    engine = build_engine(
        Model(config), settings, plan_batch(settings.batch, N * V, ranks.world_size), ranks
    )
    batch = batch_of(config)
    with Meter(ranks.device) as meter:
        for number in range(1 + STEPS):
            targets = targets_of(batch, config, MASK_RATE, number)
            place = (batch.position_T, batch.segments)
            nats_M, _ = engine(targets.rows_TV, *place, targets.select_M, targets.target_MV)
            engine.backward(nats_M.mean())
            engine.step()
            if number == 0:
                meter.take()
        traffic = meter.take()
    engine.destroy()
    return traffic


@dataclass
class Row:
    """A line of the table; bytes of a rank in a step. `measured_bytes`: None where it was not."""

    model: str
    layers: int
    stage: int
    parameters: int
    embedding: int
    formula_bytes: float
    measured_bytes: float | None = None
    operations: dict[str, float] | None = None

    def line(self) -> str:
        measured = "" if self.measured_bytes is None else f"{self.measured_bytes / 1e6:,.1f}"
        ratio = (
            ""
            if self.measured_bytes is None
            else f"x{self.measured_bytes / self.formula_bytes:.3f}"
        )
        return (
            f"{self.model:12} {self.layers:6} {self.stage:5} {self.parameters:13,}"
            f" {self.embedding / self.parameters:10.2%} {self.formula_bytes / 1e6:12,.1f}"
            f" {measured:>12} {ratio:>8}"
        )


def row_of(config: ModelConfig, stage: int, ranks: int) -> Row:
    """What the formula says."""
    with torch.device("meta"):
        model = Model(config)
    parameters = sum(p.numel() for p in model.parameters())
    embedding = sum(p.numel() for p in model.encoder.embedding.parameters())
    formula = PASSES[stage] * FP32_BYTES * parameters * (ranks - 1) / ranks
    return Row(config.model.input, config.model.layers, stage, parameters, embedding, formula)


def child(layers: int, width: int, out: Path) -> None:
    """A rank: measures both models under every stage; rank 0 writes the rows."""
    ranks = join_ranks(TrainSettings(device="cpu"))
    rows = []
    for kind in (OURS, TWIN):
        config = shape_of(kind, layers, width)
        for stage in PASSES:
            traffic = measure(config, stage, ranks)
            row = row_of(config, stage, ranks.world_size)
            row.measured_bytes = traffic.total.sent_bytes / STEPS
            row.operations = {
                name: count.sent_bytes / STEPS for name, count in traffic.by_operation.items()
            }
            rows.append(asdict(row))
    if ranks.first:
        out.write_text(json.dumps(rows))
    torch.distributed.destroy_process_group()


def measured_rows(options: argparse.Namespace, layers: int, width: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "rows.json")
        words = ["--child", str(out), "--layers", str(layers), "--width", str(width)]
        if code := start_ranks(Path(__file__), words, options.ranks):
            raise SystemExit(code)
        return [Row(**row) for row in json.loads(out.read_text())]


def table_of(rows: list[Row], stage: int) -> Rates:
    """What was measured under one stage, ours against its twin."""
    some = [row for row in rows if row.stage == stage]
    return Rates(
        f"ZeRO {stage}: what a rank sends in a step, the models of {some[0].layers} layers",
        "MB",
        [(OURS, TWIN, None)],
        less=True,
        label=f"ZeRO {stage}",
        details=[asdict(row) for row in some],
        rates={r.model: [r.measured_bytes / 1e6] for r in some if r.measured_bytes is not None},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=2, help="that are trained (default 2)")
    parser.add_argument("--width", type=int, default=BASE_WIDTH, help="of both (default 768)")
    parser.add_argument("--ranks", type=int, default=2, help="gloo ranks (default 2)")
    parser.add_argument("--quick", action="store_true", help="1 layer x 96: does it run?")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--child", type=Path, help="run as a rank, and nothing else")
    options = parser.parse_args()
    layers, width = (1, 96) if options.quick else (options.layers, options.width)
    if options.child:
        return child(layers, width, options.child)
    rows = measured_rows(options, layers, width)
    rows += [
        row_of(shape_of(kind, BASE_LAYERS, BASE_WIDTH), stage, options.ranks)
        for kind in (OURS, TWIN)
        for stage in PASSES
    ]
    print(f"bytes sent by each of {options.ranks} ranks in a step", HEAD, sep="\n")
    print("\n".join(row.line() for row in rows))
    for row in rows[: len(PASSES)]:
        print(
            f"ZeRO {row.stage} sends by",
            ", ".join(f"{n} {x / 1e6:,.1f} MB" for n, x in (row.operations or {}).items()),
        )
    print()
    report([table_of(rows, stage) for stage in PASSES], options.json)


if __name__ == "__main__":
    main()
