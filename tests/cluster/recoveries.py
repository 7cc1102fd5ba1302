"""What the failures of the tests cost: README.md's table, and how it is kept.

    ELEMDIST_KEEP_RECOVERIES=1 make test-cluster CLUSTERS=1

writes recoveries.json, with which a test compares the table.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

KEPT = Path(__file__).with_suffix(".json")
# What ended an attempt, steps lost, seconds to the next step: added by the tests that ran.
RECOVERIES: list[tuple[str, int, float]] = []


def table(rows: list[tuple[str, int, float]]) -> str:
    """As Markdown, a line each."""
    lines = ["| what ends the attempt | steps lost | s to the next step |", "|---|---|---|"]
    lines += [f"| {what} | {lost} | {seconds:.0f} |" for what, lost, seconds in rows]
    return "\n".join(lines)


def keep() -> None:
    """Keeps what was measured, where it is asked for."""
    if "ELEMDIST_KEEP_RECOVERIES" in os.environ:
        KEPT.write_text(json.dumps(RECOVERIES, indent=1) + "\n", encoding="utf-8")
