"""Seconds and memory until the first batch of an epoch is known, ours against streaming's plan.

    elemdist bench epoch [--samples 100000000] [--streaming-samples 5000000] [--quick] [--json FILE]

Only sample numbers are worked out, no data is read. Each measurement is a process of its own; its
memory is the peak of the plan beyond what the process had before it. streaming's plan grows with
the samples (some 60 bytes each), so it is measured on fewer.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import subprocess
import sys
from pathlib import Path

from tests.bench.rounds import Rates, parser, report

ROOT = str(Path(__file__).resolve().parents[2])
BATCH = 64
MEASURE = """
import resource, sys, time
import numpy as np
sys.path.insert(0, {root!r})
samples, batch = {samples}, {batch}
{prepare}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
{plan}
seconds = time.perf_counter() - start
assert len(set(first.tolist())) == batch and 0 <= first.min() and first.max() < samples
print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
OURS = (
    "from elemdist.data import sample_ids",
    "first = sample_ids(np.arange(batch), samples, 1)",
)
STREAMING = (
    """
from types import SimpleNamespace
from elemdist.streaming_compat import import_streaming
import_streaming()
from streaming.base.batching import generate_work
from streaming.base.dataset import StreamingDataset
from streaming.base.stream import Stream
from streaming.base.world import World
sizes = np.full(samples // 10_000, 10_000)
data = SimpleNamespace(
    batch_size=batch, shuffle=True, shuffle_algo="py1e", shuffle_seed=1, num_canonical_nodes=1,
    shuffle_block_size=1 << 18, partition_algo="relaxed", epoch_size=samples, num_streams=1,
    initial_physical_nodes=None, sampling_method="balanced", sampling_granularity=1,
    epoch_seed_change=True, streams=[SimpleNamespace(choose=samples)], samples_per_shard=sizes,
    shard_offset_per_stream=np.zeros(1, int), shards_per_stream=np.array([len(sizes)]),
    sample_offset_per_shard=sizes.cumsum() - sizes,
)
data.resample_streams = lambda epoch: StreamingDataset.resample_streams(data, epoch)
""",
    'first = generate_work("random", data, World.detect(), 0, 0)[0, 0, 0, 0]',
)


def measured(name: str, samples: int) -> tuple[float, float]:
    """(seconds, megabytes) of one plan."""
    prepare, plan = OURS if name == "ours" else STREAMING
    code = MEASURE.format(root=ROOT, samples=samples, batch=BATCH, prepare=prepare, plan=plan)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def measure(samples: int, names: list[str], rounds: int, most_mb: float | None) -> list[Rates]:
    """Two tables of the plans of so many samples: seconds, and memory."""
    title = f"the plan of an epoch of {samples:,} samples, until its first batch is known"
    compared = [("ours", name, None) for name in names if name != "ours"]
    seconds = Rates(title, "seconds", compared, less=True, label=f"{samples:,}, time")
    memory = Rates(title, "MB", compared, less=True, label=f"{samples:,}, memory")
    if most_mb is not None:
        memory.bounds = [("ours", most_mb)]
    seconds.rates, memory.rates = ({name: [] for name in names} for _ in range(2))
    for _ in range(rounds):
        for name in names:
            took, peak = measured(name, samples)
            seconds.rates[name].append(took)
            memory.rates[name].append(peak)
    return [seconds, memory]


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--samples", type=int, default=100_000_000)
    options.add_argument("--streaming-samples", type=int, default=5_000_000)
    chosen = options.parse_args()
    rounds = 1 if chosen.quick else chosen.rounds
    both = 100_000 if chosen.quick else chosen.streaming_samples
    tables = measure(chosen.samples, ["ours"], rounds, most_mb=50)
    tables += measure(both, ["ours", "streaming"], rounds, most_mb=None)
    report(tables, chosen.json)


if __name__ == "__main__":
    main()
