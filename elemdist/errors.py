"""The one error that a user's mistake raises.

Every entry point turns it into one line on standard error and exit code 2, without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2


class UserError(Exception):
    """A mistake that the user can mend: the message says what, where and what to do."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: ``"; did you mean 'layers'?"``, or the empty string."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{found[0]}'?" if found else ""
