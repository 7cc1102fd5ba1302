"""The settings of ``elemdist report``. Imports nothing heavy: help is built from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from elemdist.errors import UserError


@dataclass
class ReportSettings:
    """The report"""

    places: list[str] = field(default_factory=list)
    """Run folders, and folders of `elemdist compare`."""
    figures: list[str] = field(default_factory=list)
    """JSON files of `elemdist eval --out` and `elemdist robustness --out`."""
    out: str = "report.html"
    """The page to write."""

    def check(self) -> None:
        """Raises UserError on what can be said without reading anything."""
        if not self.places and not self.figures:
            raise UserError("nothing to report: elemdist report RUN [RUN ...] --out report.html")
        if Path(self.out).suffix.lower() not in (".html", ".htm"):
            raise UserError(f"out: the name of a page ends in .html, not as {self.out}")
        if not Path(self.out).resolve().parent.is_dir():
            raise UserError(f"out: the folder of {self.out} does not exist")
