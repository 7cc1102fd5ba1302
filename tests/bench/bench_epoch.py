"""Seconds and memory until the first batch of an epoch is known, ours against streaming's plan.

    elemdist bench epoch [--samples 100000000] [--streaming-samples 5000000] [--quick] [--json FILE]

Only sample numbers are worked out, no data is read. Each measurement is a process of its own; its
memory is the peak of the plan beyond what the process had before it. streaming's plan grows with
the samples (some 60 bytes each), so it is measured on fewer.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started by path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import json
import statistics
import subprocess

from tests.bench.rounds import parser

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


def measured(name: str, samples: int, rounds: int) -> dict[str, float | str]:
    """Medians of a plan's seconds and megabytes."""
    prepare, plan = OURS if name == "ours" else STREAMING
    code = MEASURE.format(root=ROOT, samples=samples, batch=BATCH, prepare=prepare, plan=plan)
    found = []
    for _ in range(rounds):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        found.append([float(word) for word in done.stdout.split()])
    seconds, megabytes = (statistics.median(values) for values in zip(*found, strict=True))
    return {"plan": name, "samples": samples, "seconds": seconds, "megabytes": megabytes}


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--samples", type=int, default=100_000_000)
    options.add_argument("--streaming-samples", type=int, default=5_000_000)
    chosen = options.parse_args()
    rounds = 1 if chosen.quick else chosen.rounds
    theirs = 100_000 if chosen.quick else chosen.streaming_samples
    rows = [
        measured("ours", chosen.samples, rounds),
        measured("ours", theirs, rounds),
        measured("streaming", theirs, rounds),
    ]
    print(f"{'epoch plan':12}{'samples':>14}{'seconds':>12}{'peak MB':>10}")
    for row in rows:
        print(
            f"{row['plan']:12}{row['samples']:14,}{row['seconds']:12.6f}{row['megabytes']:10,.1f}"
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
