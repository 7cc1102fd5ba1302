"""The cluster of the tests: one for each process that runs some of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.cluster import NEEDED, Cluster
from tests.cluster.recoveries import RECOVERIES, keep, table


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of several hands over what it has measured."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["recoveries"] = RECOVERIES


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes what a process has measured."""
    RECOVERIES.extend(map(tuple, getattr(node, "workeroutput", {}).get("recoveries", [])))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of the README."""
    if RECOVERIES:
        terminalreporter.write_line(table(RECOVERIES))
        keep()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running cluster."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        lacking = f"{', '.join(missing)} not installed" if missing else "only root starts a SLURM"
        assert "ELEMDIST_NEED_SLURM" not in os.environ, lacking
        pytest.skip(f"{lacking}; as root: make test-cluster")
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    found = Cluster(tmp_path_factory.mktemp("slurm"), int(worker.removeprefix("gw")))
    try:
        found.start()
        yield found
    finally:
        found.stop()
