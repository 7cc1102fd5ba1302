"""Standard input as a source of `elemdist shard`: kept in a file until the set is complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator

from data_prep.documents import STDIN
from data_prep.journal import STDIN_COPY, Journal
from data_prep.pipeline import sets_of
from data_prep.settings import ShardSettings
from data_prep.store import LocalStore, write_error
from elemdist.atomic import replacing
from elemdist.errors import UserError
from elemdist.remote import is_url


@contextlib.contextmanager
def kept_input(settings: ShardSettings) -> Iterator[list[str]]:
    """Yield the inputs, with the path of a copy in the state folder in place of standard input.

    The copy of an unfinished run is taken as it is: what was piped cannot be piped again. A run
    that fails before anything is done removes it, and names standard input in its error.

    Raises:
        UserError: the output is no local folder, or not empty, or no format is set.
    """
    if STDIN not in settings.inputs:
        yield settings.inputs
        return
    if settings.inputs.count(STDIN) > 1 or is_url(settings.out) or settings.part is not None:
        raise UserError("standard input is read once, into a local folder, without parts")
    if settings.input.format == "auto":
        raise UserError("standard input has no name to tell its format: set --input.format")
    journal = Journal(LocalStore(settings.out), sets_of(settings))
    path = journal.store.name_of(STDIN_COPY)
    journal.claim(None)
    try:
        _keep(journal, path, settings)
    except BaseException:
        journal.leave()
        raise
    journal.release()
    try:
        yield [path if entry == STDIN else entry for entry in settings.inputs]
    except UserError as error:
        with contextlib.suppress(UserError):  # another run has it by now
            journal.claim(None)
            journal.leave()
        error.args = (error.args[0].replace(path, "standard input"),)
        raise


def _keep(journal: Journal, path: str, settings: ShardSettings) -> None:
    """Copy standard input to a file, unless an unfinished run did.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    journal.begin(settings.restart)
    if os.path.exists(path):
        print(f"elemdist shard: going on with the input that {settings.out} kept")
        return
    try:
        with replacing(path) as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    except OSError as error:
        raise write_error(path, 0, error) from error
