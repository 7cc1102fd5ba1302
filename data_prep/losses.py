"""What is left out of the input, and what is kept but worth a word: counted by reason.

Counts are kept for each work item, so that they are the same for any number of processes and for a
run that goes on where another one was killed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from elemdist.errors import UserError

EXAMPLES = 3  # names that are kept for each reason

# Files and folders.
HIDDEN = "hidden files and folders"
OTHER_NAME = "files whose name tells no format that is read here"
OTHER_FORMAT = "files of another format than input.format"
FOLDER_LINK = "links to folders"
MATCHED_FOLDER = "folders that a pattern matches"
BESIDE_SET = "files beside the shards of a data set"
EMPTY_FILE = "files without a document"
TWICE = "inputs that were named before"
# Parts of files.
BLANK = "blank lines"
NOT_MATCHED = "tar members that input.members leaves out"
NO_TEXT_RECORD = "WARC records that are no plain text"
DAMAGED = "files that are damaged or cut short"
LINK_MEMBER = "tar members that are links or devices"
BAD_NAME = "tar members whose path leads out of the folder"
# Records and documents.
NO_FIELD = "records without the field"
NULL = "records with null in the field"
WRONG_TYPE = "records with a value of another type"
NOT_A_RECORD = "records that cannot be parsed"
INVALID = "documents that are not valid UTF-8"
TOO_LARGE = "documents that are too large"
UNKNOWN_LABEL = "documents with an unknown label"
DUPLICATE = "documents that came before (dedup)"
NOT_CHOSEN = "samples that were not selected"
# What is kept.
NO_TEXT = "documents without text"
NO_LABEL = "documents without a label"
LABEL_TWICE = "documents that name a label twice"
CLASS_NONE = "labels -1, which stand for no class"
RETURNS = "carriage returns in documents that are lines, which are kept"
MARK = "files with a byte order mark, which is kept"

KEPT = frozenset({NO_TEXT, NO_LABEL, LABEL_TWICE, CLASS_NONE, RETURNS, MARK})
ASKED = frozenset({NOT_MATCHED, DUPLICATE, NOT_CHOSEN})  # as the settings say: never refused


class Losses:
    """Counts by reason, each with the first few names.

    Args:
        strict: raise at the first one, unless the settings ask for it.

    Attributes:
        counts: reason -> how many. examples: reason -> the first names.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str = "", count: int = 1) -> None:
        """Count one, or several.

        Raises:
            UserError: strict, and the settings do not ask for it.
        """
        if not count:
            return
        self.counts[reason] += count
        kept = self.examples.setdefault(reason, [])
        if example and len(kept) < EXAMPLES and example not in kept:
            kept.append(example)
        if self.strict:
            self.refuse()

    def update(self, other: Losses) -> None:
        """Add the counts of another part of the input, which comes later."""
        for reason, count in other.counts.items():
            self.counts[reason] += count
            kept = self.examples.setdefault(reason, [])
            new = [one for one in other.examples.get(reason, []) if one not in kept]
            kept += new[: EXAMPLES - len(kept)]

    def refuse(self) -> None:
        """Raise a UserError if anything was left out, or is worth a word, without being asked."""
        reasons = [reason for reason in self.counts if reason not in ASKED]
        if reasons:
            lines = [self._line(reason) for reason in reasons]
            raise UserError(f"strict: {'; '.join(lines)}: mend the input, or leave strict out")

    def lines(self) -> list[str]:
        """What there is to say: one line for each reason."""
        left = [f"left out: {self._line(reason)}" for reason in self.counts if reason not in KEPT]
        return left + [f"note: {self._line(reason)}" for reason in self.counts if reason in KEPT]

    def _line(self, reason: str) -> str:
        names = self.examples.get(reason, [])
        more = ", ..." if len(names) == EXAMPLES < self.counts[reason] else ""
        where = f" ({', '.join(names)}{more})" if names else ""
        return f"{reason}: {self.counts[reason]:,}{where}"

    def to_json(self) -> dict[str, Any]:
        """The counts, as from_json takes them."""
        return {"counts": dict(self.counts), "examples": self.examples}

    @staticmethod
    def from_json(kept: dict[str, Any]) -> Losses:
        """Read what to_json gave. Raises LookupError, TypeError or AttributeError for others."""
        found = Losses()
        found.counts.update(dict(kept["counts"].items()))
        found.examples = {str(key): list(names) for key, names in kept["examples"].items()}
        return found

    @staticmethod
    def from_manifest(manifest: dict[str, Any]) -> Losses:
        """Read what for_manifest gave; nothing from a manifest without."""
        counts = {**manifest.get("left_out", {}), **manifest.get("noted", {})}
        return Losses.from_json(
            {"counts": counts, "examples": manifest.get("left_out_examples", {})}
        )

    def for_manifest(self) -> dict[str, Any]:
        """The entries of a manifest: what is left out, what is kept but noted, and examples."""
        return {
            "left_out": {key: self.counts[key] for key in sorted(self.counts) if key not in KEPT},
            "noted": {key: self.counts[key] for key in sorted(self.counts) if key in KEPT},
            "left_out_examples": {key: self.examples[key] for key in sorted(self.examples)},
        }


def sum_of(losses: Iterable[Losses]) -> Losses:
    """Return the counts of all parts together, in their order."""
    found = Losses()
    for one in losses:
        found.update(one)
    return found
