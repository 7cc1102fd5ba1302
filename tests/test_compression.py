from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from elemdist import compression
from elemdist.errors import UserError
from elemdist.streaming_compat import import_streaming
from tests.shard_sets import make_set

NAMES = ["br", "br:5", "bz2", "bz2:1", "gz", "gz:6", "snappy", "zstd", "zstd:7"]
DATA = np.repeat(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8), 9)


@pytest.mark.parametrize("name", NAMES)
def test_streaming_and_we_unpack_each_others_bytes(name):
    import_streaming()
    from streaming.base import compression as stock

    packed = compression.compress(name, DATA.reshape(9, -1).data)
    assert len(packed) < len(DATA) * 1.01
    assert packed == compression.compress(name, DATA.tobytes())
    assert stock.decompress(name, packed) == DATA.tobytes()
    assert compression.extension(name) == stock.get_compression_extension(name)
    theirs = stock.compress(name, DATA.tobytes())
    assert compression.decompress(name, theirs, len(DATA)) == DATA.tobytes()


def test_every_name_of_streaming_is_known_and_no_other():
    import_streaming()
    from streaming.base import compression as stock

    for name in stock.get_compressions():
        compression.check(name)
    for name in ["zip", "zstd:0", "zstd:23", "zstd:07", "zstd:", "gz:10", "br:-1", "snappy:1", ""]:
        assert not stock.is_compression(name)
        with pytest.raises(UserError):
            compression.check(name)
    with pytest.raises(UserError, match="did you mean 'zstd'"):
        compression.check("zst")
    with pytest.raises(UserError, match="the levels of gz are 0 to 9"):
        compression.check("gz:11")


@pytest.mark.parametrize("name", ["br", "bz2", "gz", "snappy", "zstd"])
def test_damaged_and_cut_data_is_refused(name):
    packed = compression.compress(name, DATA.data)
    for bad in (packed[:-3], packed[: len(packed) // 2], b"", b"none"):
        with pytest.raises(ValueError, match=f"damaged {name} data"):
            compression.decompress(name, bad, len(DATA))


@pytest.mark.parametrize("name", ["br:5", "bz2", "gz", "snappy", "zstd"])
def test_no_more_is_unpacked_than_was_allowed(name):
    packed = compression.compress(name, bytes(200_000_000))
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        compression.decompress(name, packed, 1000)
    assert compression.decompress(name, compression.compress(name, bytes(1000)), 1000)
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()


@pytest.mark.usefixtures("streaming_alone")
@pytest.mark.parametrize("name", ["br", "bz2", "gz", "snappy", "zstd"])
def test_stock_streaming_reads_a_set_that_we_compressed(name, tmp_path):
    """Each shard of a set packed anew by us, the index told so."""
    import hashlib
    import json

    rows = make_set(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    for entry in index["shards"]:
        raw = tmp_path / entry["raw_data"]["basename"]
        packed = compression.compress(name, raw.read_bytes())
        raw.unlink()
        zipped = f"{raw.name}.{compression.extension(name)}"
        (tmp_path / zipped).write_bytes(packed)
        entry["zip_data"] = {
            "basename": zipped,
            "bytes": len(packed),
            "hashes": {"sha1": hashlib.sha1(packed).hexdigest()},
        }
        entry["compression"] = name
    (tmp_path / "index.json").write_text(json.dumps(index))
    dataset = import_streaming().StreamingDataset(local=str(tmp_path), batch_size=1)
    found = np.stack([dataset[number]["rows"] for number in range(len(rows))])
    assert (found == rows).all()
