"""Which set a document goes to, however it is cut into batches."""

from __future__ import annotations

from collections import Counter

import numpy as np

from data_prep.documents import Batch, batch_of
from data_prep.plan import Item, Job
from data_prep.route import Router
from data_prep.settings import ShardSettings

SETS = ("train", "val", "test")


def router(**job: object) -> Router:
    settings = ShardSettings(["a"], "b", split="train=0.8,val=0.1,test=0.1")
    return Router(Job(Item(0, ()), None, SETS, **job), settings)  # type: ignore[arg-type]


def sides(found: Router, batches: list[Batch]) -> dict[bytes, int]:
    """Text -> number of its set, with the pieces of a document joined."""
    texts: dict[int, list[bytes]] = {}
    placed: dict[bytes, int] = {}
    for batch in batches:
        for routed in found.sort(batch):
            held = texts.setdefault(routed.set, [])
            spans = zip(routed.batch.starts, routed.batch.ends, strict=True)
            for k, (start, end) in enumerate(spans):
                text = routed.batch.data[start:end].tobytes()
                if k == 0 and routed.batch.begun:
                    held[-1] += text
                else:
                    held.append(text)
    for side, some in texts.items():
        placed |= dict.fromkeys(some, side)
    return placed


def test_shares() -> None:
    documents = [b"document %d" % k for k in range(5000)]
    counts = Counter(sides(router(), [batch_of(documents)]).values())
    assert sum(counts.values()) == 5000
    assert abs(counts[0] / 5000 - 0.8) < 0.02
    assert abs(counts[1] / 5000 - 0.1) < 0.02


def test_a_document_never_changes_its_side() -> None:
    documents = [b"document %d" % k for k in range(300)]
    alone = sides(router(), [batch_of(documents)])
    grown = sides(router(), [batch_of([b"new", *documents[::-1], b"newer"])])
    assert grown | alone == grown


def test_pieces_stay_together() -> None:
    rng = np.random.default_rng(0)
    documents = [b"%d " % k + rng.bytes(200).hex().encode() for k in range(50)]
    whole = sides(router(), [batch_of(documents)])
    # A side hangs on the first 64 KiB, so a piece is at least that long, or all of the document.
    long = [document * 400 for document in documents]
    pieces = []
    for text in long:
        pieces += [
            batch_of([text[:70_000]], open=True),
            batch_of([text[70_000:90_000]], begun=True, open=True),
            batch_of([text[90_000:]], begun=True),
        ]
    assert len(set(whole.values())) > 1
    assert sides(router(), pieces) == sides(router(), [batch_of(long)])


def test_duplicates_are_left_out_and_counted() -> None:
    documents = [b"a", b"b", b"a", b"c", b"b" * 5]
    bits = np.packbits(np.array([0, 0, 1, 0, 1], np.uint8)).tobytes()
    found = router(dropped=bits)
    batches = [
        batch_of(documents[:4]),
        batch_of([b"bb"], open=True),
        batch_of([b"bbb"], begun=True),
    ]
    assert set(sides(found, batches)) == {b"a", b"b", b"c"}
    assert found.duplicates.sum(0).tolist() == [2, 6]


def test_refused_documents_go_nowhere() -> None:
    refused = np.array([False, True])
    batch = batch_of([b"good", b"ba"], open=True)
    found = router()
    kept = [r.batch for r in found.sort(batch, refused)]
    kept += [r.batch for r in found.sort(batch_of([b"d", b"fine"], begun=True), None)]
    texts = [b.data[s:e].tobytes() for b in kept for s, e in zip(b.starts, b.ends, strict=True)]
    assert sorted(texts) == [b"fine", b"good"]


def test_held_out_by_place() -> None:
    settings = ShardSettings(["a"], "b", holdout_last=1)
    bits = np.packbits(np.array([0, 1, 0, 0], np.uint8)).tobytes()
    found = Router(Job(Item(0, ()), None, ("train", "val"), bits, first=2), settings)
    placed = sides(found, [batch_of([b"a", b"dropped", b"b", b"c"])])
    assert placed == {b"a": 0, b"b": 0, b"c": 1}
