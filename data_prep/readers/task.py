"""What a reader is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data_prep.documents import Part, Problems
from data_prep.settings import ShardSettings


@dataclass(frozen=True)
class ReadTask:
    """A part of a source, to be read once.

    Attributes:
        problems: where documents go that cannot be taken.
        progress: called with stored bytes as they are read; they sum up to about part.weight.
        optional_id: a record need not have the field input.id_field; ids keep their type.
    """

    part: Part
    settings: ShardSettings
    problems: Problems
    progress: Callable[[int], None]
    optional_id: bool = False
