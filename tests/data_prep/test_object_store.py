"""Through a real object store: written, killed, resumed, and read back by streaming."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elemdist.shards import ShardSet
from tests.conftest import ELEMDIST, elemdist, expect_user_error, wait_until
from tests.data_prep.corpora import write_corpus

BUCKET = "s3://corpora"
OPTIONS = ["--n", "16", "--v", "8", "--item-mb", "1", "--shard-mb", "1", "--on-error", "skip"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server on this machine, and the environment that leads to it; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    log = (tmp_path_factory.mktemp("store") / "log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=log,
        stderr=log,
    )
    variables = {
        "AWS_ENDPOINT_URL": url,
        "S3_ENDPOINT_URL": url,  # streaming's own name for it
        "AWS_ACCESS_KEY_ID": "key-of-the-tests",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=1).close()
                break
            time.sleep(0.1)
        import boto3

        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="corpora")
        yield url
    finally:
        server.terminate()
        server.wait(30)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def client_of_store() -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])


def keys_of(prefix: str) -> list[str]:
    """All keys with a prefix."""
    pages = client_of_store().get_paginator("list_objects_v2")
    found = pages.paginate(Bucket="corpora", Prefix=prefix)
    return [entry["Key"] for page in found for entry in page.get("Contents", [])]


def objects(prefix: str) -> dict[str, bytes]:
    """Key beneath a prefix -> content."""
    client, keys = client_of_store(), keys_of(prefix)
    return {
        key[len(prefix) :].lstrip("/"): client.get_object(Bucket="corpora", Key=key)["Body"].read()
        for key in keys
    }


@pytest.mark.usefixtures("streaming_alone")
def test_write_kill_resume_read(store: str, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "made.jsonl", 15_000)
    local = tmp_path / "set"
    done = elemdist("shard", corpus, "--out", local, *OPTIONS)
    assert done.returncode == 0, done.stderr
    import boto3

    client = boto3.client("s3", endpoint_url=store)
    client.upload_file(str(corpus), "corpora", "raw/made.jsonl")

    command = ["shard", f"{BUCKET}/raw", "--out", f"{BUCKET}/set", "--processes", "2", *OPTIONS]
    killed = 0
    for _ in range(2):
        process = subprocess.Popen(
            [ELEMDIST, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        count = len(keys_of("set/.elemdist/done"))
        wait_until(
            lambda count=count, process=process: (
                len(keys_of("set/.elemdist/done")) > count or process.poll() is not None
            ),
            "an item that is done",
        )
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
        assert "index.json" not in objects("set")
    assert killed
    done = elemdist(*command)
    assert done.returncode == 0, done.stderr
    ours = {path.name: path.read_bytes() for path in local.iterdir() if path.is_file()}
    there = objects("set")
    assert sorted(there) == sorted(ours)
    for name, content in ours.items():
        if name.endswith(".mds") or name == "index.json":
            assert there[name] == content, name
    assert b"secret-of-the-tests" not in b"".join(there.values())
    read_back(local, tmp_path)


def read_back(local: Path, tmp_path: Path) -> None:
    """By streaming, by our own reader, and as input once more."""
    wanted, _ = ShardSet(str(local)).gather(np.arange(50))
    remote = ShardSet(f"{BUCKET}/set")
    rows_BNV, _ = remote.gather(np.arange(50))
    assert np.array_equal(rows_BNV, wanted)
    code = (
        "import sys\n"
        "from elemdist.streaming_compat import import_streaming\n"
        "dataset = import_streaming().StreamingDataset(\n"
        "    remote=sys.argv[1], local=sys.argv[2], shuffle=False, batch_size=1)\n"
        "sys.stdout.buffer.write(b''.join(dataset[k]['rows'].tobytes() for k in range(50)))\n"
    )
    read = subprocess.run(
        [sys.executable, "-c", code, f"{BUCKET}/set", str(tmp_path / "streamed")],
        capture_output=True,
    )
    assert read.stdout == wanted.tobytes(), read.stderr.decode()[-2000:]
    verified = elemdist("verify", f"{BUCKET}/set")
    assert verified.returncode == 0, verified.stdout + verified.stderr


class Flaky(threading.Thread):
    """Passes connections on to a server, and drops the first requests of each kind of work."""

    def __init__(self, url: str, drop: int) -> None:
        super().__init__(daemon=True)
        host, _, port = url.removeprefix("http://").partition(":")
        self._server, self._drop = (host, int(port)), drop
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.dropped = 0

    def run(self) -> None:
        while True:
            client, _ = self._socket.accept()
            if self.dropped < self._drop:
                self.dropped += 1
                client.close()
                continue
            server = socket.create_connection(self._server)
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)


def test_a_store_that_fails_for_a_while(store: str, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "made.jsonl", 500)
    flaky = Flaky(store, drop=12)  # more than the store's own library tries for one request
    flaky.start()
    done = elemdist(
        "shard", corpus, "--out", f"{BUCKET}/flaky", *OPTIONS, AWS_ENDPOINT_URL=flaky.url
    )
    assert done.returncode == 0, done.stderr
    assert flaky.dropped == 12
    assert elemdist("shard", corpus, "--out", tmp_path / "set", *OPTIONS).returncode == 0
    there = objects("flaky")
    for path in (tmp_path / "set").glob("*.mds"):
        assert there[path.name] == path.read_bytes()


def test_mistakes(store: str, tmp_path: Path) -> None:
    missing = elemdist("shard", "s3://corpora/none/*.jsonl", "--out", tmp_path / "out")
    expect_user_error(missing, "s3://corpora/none/*.jsonl")
    expect_user_error(elemdist("shard", "s4://corpora/none", "--out", tmp_path / "out"), "s4")
    missing = elemdist("shard", "s3://no-such-bucket/a.txt", "--out", tmp_path / "out")
    expect_user_error(missing, "no-such-bucket")
    assert not (tmp_path / "out").exists()
