"""Noticing that training hangs: a dead network disk or driver would otherwise cost hours without a word."""

from __future__ import annotations

import faulthandler
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from artclf.errors import ArtclfError, printable

LEAST_S = 300.0
TIMES_MEDIAN = 10
_LOOK_EVERY_S = 1.0
_REMEMBERED = 101
_LAST_WORD_S = 10.0


class Watchdog:
    """Calls ``hung`` once no beat came for ten times the usual time between two, and at least five minutes.

    Only time in which this process could run counts: a laptop that slept, or a process that was
    stopped for an hour, is not hung.

    Args:
        hung: called in the watchdog's thread with the seconds without a beat; is not expected to return.
        least_s: the shortest silence that is called a hang.
    """

    def __init__(self, hung: Callable[[float], None], least_s: float = LEAST_S) -> None:
        self._hung, self._least_s = hung, least_s
        self._pauses: deque[float] = deque(maxlen=_REMEMBERED)
        self._beat_at = time.monotonic()
        self._silent_s = 0.0
        self._look_every_s = min(_LOOK_EVERY_S, least_s / 4)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self.beat()
        self._thread.start()

    def beat(self) -> None:
        """Tells that a step, a batch or a part of a commit has ended."""
        moment = time.monotonic()
        self._pauses.append(moment - self._beat_at)
        self._beat_at, self._silent_s = moment, 0.0

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def limit_s(self) -> float:
        """Returns the silence that is called a hang."""
        return max(self._least_s, TIMES_MEDIAN * statistics.median(tuple(self._pauses) or (0.0,)))

    def passed(self, seconds: float) -> None:
        """Adds time in which this process could run; a longer pause than between two looks was sleep."""
        self._silent_s += min(seconds, 2 * self._look_every_s)
        if self._silent_s > self.limit_s():
            self._hung(self._silent_s)

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._closed.wait(self._look_every_s):
            moment = time.monotonic()
            self.passed(moment - looked)
            looked = moment


def dump_stacks(path: Path) -> None:
    """Appends the stack of every thread to a file."""
    with open(path, "a", encoding="utf-8") as file:
        faulthandler.dump_traceback(file, all_threads=True)


def leave_at_once(error: ArtclfError, last_words: Sequence[Callable[[], object]]) -> NoReturn:
    """Ends this process with an error's message and exit code, whatever its other threads do.

    Args:
        error: why.
        last_words: what should still be written; each gets a few seconds, since the disk may be what hangs. If one
            cannot, the stacks of all threads go to stderr.
    """
    for word in last_words:
        speaker = threading.Thread(target=word, daemon=True)
        speaker.start()
        speaker.join(_LAST_WORD_S)
        if speaker.is_alive():
            faulthandler.dump_traceback(all_threads=True)
    os.write(2, f"error: {printable(str(error))}\n".encode())
    os._exit(error.exit_code)
