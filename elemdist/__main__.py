"""The process ``elemdist``, or ``python -m elemdist``: its signals, its streams and its end."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys

TYPE_CHECKING = False  # an interrupt before install() shows a traceback: no more is loaded here
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn


class Ending:
    """How the user's signals end this process: by one line, wherever it is.

    The first one raises KeyboardInterrupt, so that the verb clears up; a second one ends it at
    once. Verbs that save on a signal, as training does, set handlers of their own for that time.

    Attributes:
        signal: the first that came; 0 for none. last: nothing is left to clear up.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.signal = 0
        self.last = False

    def install(self) -> None:
        """Take SIGINT and SIGTERM, but for those that nohup or a shell has this process ignore."""
        # The line is printed by the verb, or here; what the interrupt went through says nothing.
        sys.unraisablehook = self.unraisable
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                signal.signal(number, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        if os.getpid() != self.process:  # forked, as a worker that is terminated
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.signal or self.last:
            end_at_once(self.signal or number)
        self.signal = number
        raise KeyboardInterrupt

    def unraisable(self, what: Any) -> None:
        """Keep an interrupt that came where it cannot be raised, as in a destructor."""
        if self.signal and issubclass(what.exc_type, KeyboardInterrupt):
            end_at_once(self.signal)
        elif not self.signal:
            sys.__unraisablehook__(what)


def say_interrupted(number: int) -> None:
    """Print the one line of an end by a signal, in one call: the process may end right after."""
    verb = f" {sys.argv[1]}" if len(sys.argv) > 1 else ""
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    with contextlib.suppress(OSError):
        os.write(2, f"elemdist{verb}: {word}\n".encode("utf-8", "backslashreplace"))


def end_at_once(number: int) -> NoReturn:
    """End the process by a signal, which the line says, without any clearing up."""
    say_interrupted(number)
    die_by(number)


def die_by(number: int) -> NoReturn:
    """End the process as the signal ends others: 130 for Ctrl-C, by the signal itself for others,
    as those who sent it look for that."""
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(130)


class Printed(io.FileIO):
    """The standard output or error, whose errors say that it is meant."""

    def write(self, data: Any, /) -> int:
        """Write bytes. Raises OSError, with a name for the user."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno is not None and error.filename is None:
                error.filename = "the standard output" if self.fileno() == 1 else "standard error"
            raise


def printed_to(handle: int, before: Any) -> io.TextIOWrapper:
    """Return a stream for any text, in UTF-8, that is buffered as the one before."""
    raw = Printed(handle, "w", closefd=False)
    unbuffered = isinstance(getattr(before, "buffer", None), io.FileIO)  # python -u
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=handle == 2 or raw.isatty(),
        write_through=unbuffered,
    )


def open_streams() -> None:
    """Make the standard streams such that any text can be printed, whatever the shell has closed
    and whatever the locale is."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:  # closed: else the next file that is opened would be this stream
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    closed = sys.stdout is None
    sys.stdout, sys.stderr = printed_to(1, sys.stdout), printed_to(2, sys.stderr)
    sys.stdout.was_closed = closed  # type: ignore[attr-defined]  # for elemdist/output.py


def main() -> NoReturn:
    """Run a verb, and end the process with its exit code."""
    ending, code = Ending(), 1
    try:
        ending.install()
        open_streams()
        code = run()
    except KeyboardInterrupt:
        say_interrupted(ending.signal or signal.SIGINT)
        code = 130
    except SystemExit as error:
        code = exit_code(error)
    except BaseException as error:
        if ending.signal:  # a library has made something else of the interrupt
            say_interrupted(ending.signal)
            code = 130
        else:
            sys.excepthook(type(error), error, error.__traceback__)
    ending.last = True
    end(code, ending.signal)


def run() -> int:
    """Run the verb; its exit code, 0 where the reader of its output has seen enough."""
    try:
        from elemdist import cli

        return cli.main()
    except BrokenPipeError:
        if not reader_is_gone():  # it was another pipe, or a connection
            raise
        return 0


def reader_is_gone() -> bool:
    """Return whether the standard output or error is a pipe whose reader has seen enough."""
    import select

    poll = select.poll()
    for handle in (1, 2):
        poll.register(handle, 0)
    return any(what & select.POLLERR for _, what in poll.poll(0))


def exit_code(error: SystemExit) -> int:
    """Return the code of sys.exit(), whose text is printed."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


def end(code: int, number: int) -> NoReturn:
    """End the process: what is registered for the end runs, but modules are not taken down.

    That would go over all of torch for garbage, 0.3 s, and C++ libraries would count what they find
    as leaked. A rank leaves that out, too: threads of gloo that wake up then abort the process.
    """
    try:
        if "elemdist.train" not in sys.modules:
            import atexit
            import threading

            threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that must end
            atexit._run_exitfuncs()
    except BaseException as error:
        if not number:
            sys.excepthook(type(error), error, error.__traceback__)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # which was said, or the reader is gone
            stream.flush()
    if number:
        die_by(number)
    os._exit(code)


if __name__ == "__main__":
    main()
