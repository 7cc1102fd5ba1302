"""Paths that are URLs of object stores: s3://bucket/folder, gs://..., through fsspec."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from elemdist.errors import UserError

Result = TypeVar("Result")

URL = re.compile(r"([a-z][a-z0-9+.-]+)://")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
TRIES, FIRST_WAIT_S = 6, 0.5


def is_url(path: str) -> bool:
    """Whether a path names something in an object store, and not a local file."""
    return URL.match(path) is not None


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path of the URL in it.

    Raises:
        UserError: no such protocol, or its package is not installed.
    """
    import fsspec

    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        package = PACKAGES.get(protocol)
        hint = f"pip install {package}" if package else "see fsspec's list of protocols"
        raise UserError(f"cannot open {public(url)}: {error}; {hint}") from error


def public(url: str) -> str:
    """A URL without what may be secret in it: a query (a signature), a user and password."""
    if not is_url(url):
        return url
    head, rest = url.split("://", 1)
    host, slash, path = rest.partition("/")
    return f"{head}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def retried(action: Callable[[], Result], what: str) -> Result:
    """action(), again after a growing wait where the store or the network failed.

    A missing file or a refused access is not tried again.

    Raises:
        FileNotFoundError, PermissionError: as the store says.
        UserError: it failed every time; `what` says what was tried.
    """
    for attempt in range(TRIES):
        try:
            return action()
        except (FileNotFoundError, PermissionError, UserError):
            raise
        except Exception as error:  # every store and network has errors of its own
            if attempt == TRIES - 1:
                text = " ".join(str(error).split()) or type(error).__name__
                raise UserError(f"{what} failed {TRIES} times: {text}") from error
            time.sleep(FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")
