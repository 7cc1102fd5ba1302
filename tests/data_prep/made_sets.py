"""Small shard sets for the tests of verify, and a way to damage them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from reference import SAMPLES

from data_prep.manifest import padding_share
from data_prep.mds import MdsWriter, digest_of, stored, write_index
from data_prep.pack import Packer
from data_prep.store import open_store
from data_prep.verify.main import Report, VerifySettings, verify
from elemdist.compression import compress, decompress
from elemdist.rows import MASK, PAD

TEXTS = [text * (k % 4 + 1) for k, text in enumerate(sorted(SAMPLES.values()))]


def make_set(
    path: Path,
    documents: list[bytes],
    *,
    n: int = 8,
    v: int = 4,
    segmenter: str = "word",
    packing: str = "packed",
    overlong: str = "split",
    labels: list[list[int]] | None = None,
    names: list[str] | None = None,
    samples: int = 5,
    **more: Any,
) -> Path:
    """A shard set with so many samples in a shard, made by the packer and the writer alone."""
    store = open_store(str(path))
    bits = len(names or ())
    shape = {"n": n, "v": v}
    limit = 1 << 20
    while True:  # the size at which a shard holds just so many
        writer = MdsWriter(store, "shard.00000", **shape, labels=bits, size_limit=limit, **more)
        if writer.samples_per_shard == samples:
            break
        limit += (samples - writer.samples_per_shard) * (writer.sample_bytes + 4)
    block = np.empty((samples, writer.sample_bytes), np.uint8)
    packer = Packer(
        block, writer.write, **shape, segmenter=segmenter, packing=packing, overlong=overlong
    )
    ends = np.cumsum([len(document) for document in documents])
    hot_DL = np.zeros((len(documents), bits), np.uint8)
    for document, own in enumerate(labels or []):
        hot_DL[document, own] = 1
    starts = ends - [len(document) for document in documents]
    data = np.frombuffer(b"".join(documents), np.uint8)
    packer.add(data, starts, ends, np.packbits(hot_DL, axis=1) if bits else None)
    counts = packer.finish()
    counted = hot_DL.sum(0).tolist()
    manifest = {
        **{"format": "elemdist-shards", "version": 1, **shape, "segmenter": segmenter},
        **{"packing": packing, "overlong": overlong, "labels": names, "counts": counts},
        "label_counts": None if names is None else dict(zip(names, counted, strict=True)),
        "padding_share": padding_share(counts, n, v),
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    write_index(store, writer.shards)
    return path


def packed(path: Path, **more: Any) -> Path:
    return make_set(path, [text.encode() for text in TEXTS], **more)


def labelled(path: Path, **more: Any) -> Path:
    labels = [[k % 11, (3 * k) % 11] for k in range(len(TEXTS))]
    names = [f"label {k}" for k in range(11)]
    documents = [text.encode() for text in TEXTS]
    return make_set(path, documents, packing="document", labels=labels, names=names, **more)


def check(path: Path, **more: Any) -> Report:
    return verify(VerifySettings(str(path), processes=1, **more))


def index_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "index.json").read_text())


class Opened:
    """A shard's samples, to be changed; write() makes size and hashes of the index match."""

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number, self.index = path, number, index_of(path)
        self.entry = self.index["shards"][number]
        self.name = stored(self.entry)["basename"]
        content = (path / self.name).read_bytes()
        if self.entry["zip_data"]:
            content = decompress(self.entry["compression"], content, 1 << 20)
        self.raw = np.frombuffer(content, np.uint8).copy()
        sizes = dict(zip(self.entry["column_names"], self.entry["column_sizes"], strict=True))
        begin = len(self.raw) - self.entry["samples"] * sum(sizes.values())
        self.begin, self.head = begin, sizes.get("labels", 0)
        self.block = self.raw[begin:].reshape(self.entry["samples"], -1)
        manifest = json.loads((path / "manifest.json").read_text())
        self.rows = self.block[:, self.head :].reshape(-1, manifest["n"], manifest["v"])
        assert np.shares_memory(self.rows, self.raw)

    def write(self, matching: bool = True) -> None:
        content = self.raw.tobytes()
        infos = [(self.entry["raw_data"], content)]
        if self.entry["zip_data"]:
            content = compress(self.entry["compression"], content)
            infos.append((self.entry["zip_data"], content))
        (self.path / self.name).write_bytes(content)
        if matching:
            for info, data in infos:
                info["bytes"] = len(data)
                info["hashes"] = {name: digest_of(name, data) for name in info["hashes"]}
            (self.path / "index.json").write_text(json.dumps(self.index))


def names_of(path: Path) -> list[str]:
    return [stored(entry)["basename"] for entry in index_of(path)["shards"]]


def filled(shard: Opened, at: int) -> int:
    """A row in the middle of a sample that holds text."""
    row = next(k for k in range(2, 8) if shard.rows[at, k, 0] < 0x80)
    return row


def mask_row(shard: Opened, at: int) -> None:
    shard.rows[at, filled(shard, at)] = MASK


def gap(shard: Opened, at: int) -> None:
    shard.rows[at, filled(shard, at)] = [ord("a"), PAD, ord("b"), PAD]
