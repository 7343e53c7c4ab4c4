"""What every command line shares: kinds of arguments, and how a command ends."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
from collections.abc import Callable

from artclf.errors import DISK_FAULTS, ArtclfError, Interrupted, StorageError, printable, storage_error
from artclf.interrupt import STOP_SIGNALS


def positive(text: str) -> int:
    """Returns the whole number from 1 that a text means; argparse tells anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, received {text!r}")
    return int(text)


def positive_number(text: str) -> float:
    """Returns the number above 0 that a text means; argparse tells anything else."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, received {text!r}")
    return number


def run_command(main: Callable[[list[str]], int]) -> None:
    """Runs a command line's ``main`` and ends the process with its exit code.

    An ArtclfError becomes its message on stderr and its exit code, Ctrl-C without a StopRequest 75 (nothing
    half-written is left: every writer commits by renaming). If whoever reads our output has gone (``| head``)
    the command ends with 1 and without a word.
    """
    code, told = _ran(main)
    with contextlib.suppress(OSError):  # a terminal may be gone by now
        if told:
            print(printable(told), file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for number in STOP_SIGNALS:  # all is done: what comes while Python ends changes no verdict
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _ran(main: Callable[[list[str]], int]) -> tuple[int, str]:
    """Returns the exit code of a command, and what is to be told at its end."""
    try:
        return main(sys.argv[1:]), ""
    except Interrupted as stop:
        return stop.exit_code, str(stop)  # asked for, so no error
    except ArtclfError as error:
        return error.exit_code, f"error: {error}"
    except KeyboardInterrupt:
        return Interrupted.exit_code, "interrupted: run the same command again and it goes on."
    except BrokenPipeError:
        return 1, ""
    except OSError as error:
        if error.filename is None and error.errno not in DISK_FAULTS:
            raise
        where = error.filename if error.filename is not None else "a file"
        return StorageError.exit_code, f"error: {storage_error('use', where, error)}"
