"""The settings of ``elemdist export``. Imports nothing heavy: help is built from it."""

from __future__ import annotations

from dataclasses import dataclass

from elemdist.errors import UserError


@dataclass
class ExportSettings:
    """Export"""

    run: str | None = None
    """Run folder (its newest checkpoint) or checkpoint folder."""
    out: str | None = None
    """Folder to be made, for AutoModel.from_pretrained(..., trust_remote_code=True)."""
    figures: str | None = None
    """File of `elemdist eval --out` whose figures go into the model card; none: those of the run's
    last evaluation in training."""
    onnx: bool = False
    """Writes model.onnx, too, for any number of texts of any length, and checks it against the
    model; needs `pip install 'elemdist[onnx]'`."""

    def check(self) -> None:
        """Raises UserError on what can be said without looking at the run."""
        if not self.run or not self.out:
            raise UserError("name a run and a folder: elemdist export RUN --out DIR")
