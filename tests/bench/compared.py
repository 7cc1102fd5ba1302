"""The comparisons whose tables README.md shows, and how they are kept.

    elemdist compare configs/compare/reuters.yaml ... --out compare/reuters
    python tests/bench/compared.py compare/reuters

The second writes tests/bench/compared/reuters.json, what the tables are made of: all figures but
those of single labels and documents, which are too many; and prints the tables.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if not __package__:  # started by path
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from elemdist.compare_noise import DONE, noise_table
from elemdist.compare_table import table

KEPT = Path(__file__).with_suffix("")


def keep(folder: Path) -> Path:
    """Keeps the comparison in `folder` under the folder's name; where."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for model in found["models"].values():
        model["figures"] = {seed: only_numbers(one) for seed, one in model["figures"].items()}
    noise = folder / DONE
    points = json.loads(noise.read_text(encoding="utf-8"))["points"] if noise.exists() else []
    kept = {"results": found, "noise": [only_numbers(point, "run", "kind") for point in points]}
    target = KEPT / f"{folder.name}.json"
    target.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


def only_numbers(figures: dict[str, Any], *more: str) -> dict[str, Any]:
    """Without what is about single labels and documents, and without the names of files."""
    return {
        name: value
        for name, value in figures.items()
        if isinstance(value, (int, float)) or name in ("training", *more)
    }


def tables(kept: Path) -> str:
    """What `elemdist compare` printed and wrote to table.md."""
    found = json.loads(kept.read_text(encoding="utf-8"))
    return table(found["results"]) + (f"\n{noise_table(found['noise'])}" if found["noise"] else "")


if __name__ == "__main__":
    print(tables(keep(Path(sys.argv[1]))))
