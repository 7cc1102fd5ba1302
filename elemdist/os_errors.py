"""An error of the operating system as one line for the user: where, what, and what to do."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

# What the machine, not the program, is at fault for -> what to do about it.
ADVICE = {
    errno.ENOSPC: "make room there, or name a folder on another disk",
    errno.EDQUOT: "your quota there is used up; remove files, or name a folder on another disk",
    errno.EFBIG: "raise `ulimit -f`, or name a folder on a file system that takes larger files",
    errno.EROFS: "the file system is mounted read-only; name a folder that can be written",
    errno.EACCES: "see its permissions and those of the folders above it",
    errno.EPERM: "its owner or its attributes (lsattr) forbid it; name another place",
    errno.ENOENT: "see whether it was moved or removed",
    errno.ENOTDIR: "a part of that path is a file; name another path",
    errno.EISDIR: "name a file in it",
    errno.EEXIST: "remove it, or name another",
    errno.ENOTEMPTY: "remove what is in it, or name another",
    errno.ENAMETOOLONG: "shorten the name: a file system takes 255 bytes for each part of a path",
    errno.ELOOP: "links in that path lead in a circle; name the file itself",
    errno.EXDEV: "it lies on another file system; name a folder on the same one",
    errno.ETXTBSY: "a program runs from that file; end it, or name another",
    errno.EBUSY: "another program or a mount holds it; end that, or name another",
    errno.EIO: "the disk or its server fails; see dmesg and the file system's state",
    errno.ESTALE: "the file server lost it (NFS); mount it again, then run the same command again",
    errno.ETIMEDOUT: "the file server does not answer; see whether it is up, then run again",
    errno.EHOSTDOWN: "the file server does not answer; see whether it is up, then run again",
    errno.ENOTCONN: "the file system is gone (FUSE); mount it again, then run again",
    errno.ENODEV: "the file system cannot do this; name a folder on another one",
    errno.ENXIO: "no program reads from that pipe or socket; name a file",
    errno.ENOTSUP: "the file system cannot do this; name a folder on another one",
    errno.ENOSYS: "the file system cannot do this; name a folder on another one",
    errno.ENOLCK: "the file system has no locks left; see its lock service",
    errno.ENOMEM: "free memory, or raise `ulimit -v` or the job's limit",
    errno.EAGAIN: "too many processes or threads; see `ulimit -u`, or use fewer",
}
NEED_A_NAME = (
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ETIMEDOUT, errno.EHOSTDOWN,
    errno.ENOTCONN, errno.ENXIO,
)  # fmt: skip


def reason_of(error: OSError) -> str:
    """Return what went wrong and what to do, without the path: "No space left on device: make room
    there, or name a folder on another disk"."""
    if error.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"Too many open files: this process may have {limit:,}, its limit on open files;"
            " raise it with `ulimit -n 4096`"
        )
    if error.errno == errno.ENFILE:
        return (
            "Too many open files on this machine, whose limit is fs.file-max;"
            " end other programs, or raise it with sysctl (`ulimit -n` does not help)"
        )
    # A library's own words, as those of pyarrow, may come with a number of the system's.
    text = os.strerror(error.errno) if error.errno in ADVICE else error.strerror or str(error)
    advice = ADVICE.get(error.errno or 0)
    text = " ".join(text.split()) or type(error).__name__
    return f"{text}: {advice}" if advice else text


def line_of(error: OSError, path: str | Path = "") -> str:
    """Return reason_of() after the path that the error names, or else `path`."""
    where = error.filename2 or error.filename
    if where is None or isinstance(where, int):
        where = path
    if isinstance(where, bytes):
        where = os.fsdecode(where)
    return f"{where}: {reason_of(error)}" if str(where) else reason_of(error)


def is_of_the_machine(error: OSError) -> bool:
    """Return whether the user can mend it; what no machine is at fault for is a bug of ours."""
    known = error.errno in ADVICE or error.errno in (errno.EMFILE, errno.ENFILE)
    # Without a name they are those of a connection, or no line would be of use.
    return known and (error.errno not in NEED_A_NAME or error.filename is not None)
