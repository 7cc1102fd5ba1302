"""Curves of one or several runs as a picture.

elemdist plot runs/first runs/second --out curves.png

Reads nothing but each run folder's metrics.jsonl; elemdist/curves.py draws.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from elemdist.atomic import result
from elemdist.errors import UserError

FORMATS = (".png", ".svg", ".pdf")


@dataclass
class PlotSettings:
    """What to draw, and where to."""

    runs: list[str] = field(default_factory=list)
    """Run folders; each needs its metrics.jsonl."""

    out: str = "curves.png"
    """The picture to write; the ending chooses the format (.png, .svg, .pdf)."""


def run(settings: PlotSettings) -> None:
    """Draws the runs' curves and says where the picture lies."""
    from elemdist.curve_points import read_metrics
    from elemdist.curves import draw  # loads matplotlib, which `--help` does without

    if not settings.runs:
        raise UserError("plot needs at least one run folder")
    out = Path(settings.out)
    check_out(out)
    folders = [Path(name) for name in settings.runs]
    runs = dict(zip(run_names(folders), map(read_metrics, folders), strict=True))
    figure = draw(runs)
    with result(out) as file:
        figure.savefig(file, dpi=120, format=out.suffix[1:])
    print(f"curves of {len(runs)} run{'s' * (len(runs) > 1)}: {out}")


def check_out(out: Path) -> None:
    """A picture that cannot be written is said before the work, not after it."""
    if out.suffix.lower() not in FORMATS:
        raise UserError(f"{out}: a picture's name ends in one of {', '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; make it first")


def run_names(folders: list[Path]) -> list[str]:
    """For each folder the shortest end of its path that no other run's path shares."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise UserError("the same run folder is named twice; name each once")
    longest = max(map(len, parts))
    for length in range(1, longest + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
