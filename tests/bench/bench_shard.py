"""Text to shards on one core, ours against a WordPiece pipeline into streaming's MDSWriter.

    elemdist bench shard [--text FILE] [--megabytes 64] [--rounds 3] [--quick] [--json FILE]

Ours is `elemdist shard` on one process. The peer is what one would write with the `tokenizers`
library: a WordPiece of 30,000 tokens, trained on a slice of the text, encodes its lines on one
thread, and the tokens, cut into samples of 512, go through MDSWriter. A second table compares the
writers alone, on the same rows; their files must be the same, byte for byte.
"""

from __future__ import annotations

if not __package__:  # started by path
    import by_path  # noqa: F401

import os
import shutil
import tempfile
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # before it is imported: one core for everyone
os.environ["RAYON_NUM_THREADS"] = "1"

import numpy as np

from data_prep.mds import MdsWriter
from data_prep.shard import ShardSettings
from data_prep.shard import run as make_shards
from data_prep.store import open_store
from elemdist.streaming_compat import import_streaming
from tests.bench.rounds import Peer, Rates, made_text, parser, report, user_text

N, V, SAMPLE_TOKENS = 512, 12, 512
LINES = 1000  # encoded at once
SHARD_BYTES = 64 << 20


def ours(text: Path, out: Path, megabytes: float) -> Peer:
    def peer() -> float:
        shutil.rmtree(out, ignore_errors=True)
        settings = ShardSettings([str(text)], str(out), n=N, v=V, packing="packed")
        settings.processes, settings.quiet = 1, True
        make_shards(settings)
        return megabytes

    return peer


def wordpiece(text: Path, out: Path, megabytes: float) -> Peer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    with text.open(errors="replace") as file:
        slice_ = file.read(5_000_000).splitlines()
    trainer = trainers.WordPieceTrainer(
        vocab_size=30_000, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(slice_, trainer)
    writer = import_streaming().MDSWriter

    def peer() -> float:
        shutil.rmtree(out, ignore_errors=True)
        columns = {"ids": f"ndarray:int32:{SAMPLE_TOKENS}"}
        with (
            writer(
                out=str(out), columns=columns, hashes=["xxh3_128"], size_limit=SHARD_BYTES
            ) as to,
            text.open(errors="replace", newline="\n") as file,
        ):
            rest = np.empty(0, np.int32)
            while lines := file.readlines(LINES * 100):
                encoded = tokenizer.encode_batch(lines, add_special_tokens=False)
                rest = np.concatenate([rest, *(np.array(one.ids, np.int32) for one in encoded)])
                whole = len(rest) // SAMPLE_TOKENS * SAMPLE_TOKENS
                for sample in rest[:whole].reshape(-1, SAMPLE_TOKENS):
                    to.write({"ids": sample})
                rest = rest[whole:]
        return megabytes

    return peer


def our_writer(rows: np.ndarray, out: Path) -> Peer:
    def peer() -> float:
        shutil.rmtree(out, ignore_errors=True)
        store = open_store(str(out))
        writer = MdsWriter(store, "shard", n=N, v=V, labels=0, size_limit=SHARD_BYTES)
        for first in range(0, len(rows), writer.samples_per_shard):
            writer.write(rows[first : first + writer.samples_per_shard])
        return rows.nbytes / 1e6

    return peer


def mds_writer(rows: np.ndarray, out: Path) -> Peer:
    writer = import_streaming().MDSWriter

    def peer() -> float:
        shutil.rmtree(out, ignore_errors=True)
        columns = {"rows": f"ndarray:uint8:{N},{V}"}
        with writer(
            out=str(out), columns=columns, hashes=["xxh3_128"], size_limit=SHARD_BYTES
        ) as to:
            for sample in rows.reshape(-1, N, V):
                to.write({"rows": sample})
        return rows.nbytes / 1e6

    return peer


def same_files(one: Path, two: Path) -> None:
    """Ends the program if the shards of two folders differ."""
    names = sorted(path.name for path in one.glob("*.mds"))
    if not names or names != sorted(path.name for path in two.glob("*.mds")):
        raise SystemExit("the writers made other files")
    for name in names:
        if (one / name).read_bytes() != (two / name).read_bytes():
            raise SystemExit(f"the writers differ in {name}")


def main() -> None:
    options = parser(__doc__, rounds=3)
    options.add_argument("--text", type=Path, help="any that shard reads (default: made-up prose)")
    options.add_argument("--megabytes", type=float, default=64, help="made up (default 64)")
    chosen = options.parse_args()
    size, rounds = (0.5, 2) if chosen.quick else (chosen.megabytes, chosen.rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        if chosen.text:
            text.write_bytes(user_text(chosen.text))
        else:
            made_text(text, size)
        megabytes = text.stat().st_size / 1e6
        shard = Rates(
            f"{megabytes:,.1f} MB of text to shards, one core",
            "MB/s",
            [("elemdist shard", "WordPiece to MDS", 20)],
            [("elemdist shard", 40)],
        )
        shard.measure(
            {
                "elemdist shard": ours(text, folder / "ours", megabytes),
                "WordPiece to MDS": wordpiece(text, folder / "theirs", megabytes),
            },
            rounds,
        )
        samples = 100 if chosen.quick else 40_000
        rows = np.random.default_rng(0).integers(0, 256, (samples, N * V), np.uint8)
        writers = Rates(
            f"{rows.nbytes / 1e6:,.1f} MB of rows to shards, the writers alone",
            "MB/s",
            [("our writer", "MDSWriter", None)],
            label="writers",
        )
        peers = {
            "our writer": our_writer(rows, folder / "written"),
            "MDSWriter": mds_writer(rows, folder / "streaming"),
        }
        writers.measure(peers, rounds)
        same_files(folder / "written", folder / "streaming")
        report([shard, writers], chosen.json)


if __name__ == "__main__":
    main()
