"""`elemdist convert`: shards into other shards, or into text again, without the source text.

elemdist convert shards/a shards/b --out shards/both

Whatever leaves the rows as they are (order, selection, shard size, compression, hashes, several
sets into one) copies samples in blocks. Anything else reads the documents out of the rows and
shards them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from data_prep.convert.settings import ConvertSettings
from elemdist.errors import UserError
from elemdist.text_input import for_verb

if TYPE_CHECKING:  # the command's help need not wait for numpy and the readers
    from data_prep.pipeline import ShardSummary
    from data_prep.plan import Done, Job
    from data_prep.settings import ShardSettings

__all__ = ["ConvertSettings", "copy_item", "run"]


def copy_item(job: Job, settings: ShardSettings, progress: Callable[[int], None]) -> Done:
    """Copies the samples of one work item; see copy_rows.copy_item."""
    from data_prep.convert import copy_rows

    return copy_rows.copy_item(job, settings, progress)


def run(settings: ConvertSettings) -> None:
    """Converts sets as the settings say.

    Raises:
        UserError: a mistake in the settings, a damaged set, or a full disk.
    """
    try:
        _run(settings)
    except UserError as error:
        raise for_verb(error) from error


def _run(settings: ConvertSettings) -> None:
    if settings.append is not None and (settings.out is not None or settings.to != "shards"):
        raise UserError("append adds to a set: leave out and to out")
    if settings.append is None and settings.out is None:
        raise UserError("no output: --out names what to write, --append the set to add to")
    if not settings.sets:
        raise UserError("no input: name one or several shard sets")
    from data_prep.losses import TWICE, Losses
    from data_prep.readers.mds_files import MdsFolder
    from data_prep.readers.sources import identity

    losses = Losses(settings.strict)
    taken: dict[object, MdsFolder] = {}
    for path in settings.sets:
        folder = MdsFolder(path)
        if taken.setdefault(identity(path), folder) is not folder:
            losses.add(TWICE, folder.name)
    folders = list(taken.values())
    settings = replace(settings, sets=[folder.path for folder in folders])
    if settings.append is not None:
        from data_prep.convert.append_set import append

        message = append(settings, folders)
        if not settings.quiet:
            print(message)
        return
    if settings.to != "shards":
        from data_prep.convert.export_text import export

        export(settings, folders, losses)
        return
    from data_prep.convert.plan import make
    from data_prep.shard import describe

    summary: ShardSummary = make(settings, folders, losses)
    if not settings.quiet:
        print(describe(summary))
