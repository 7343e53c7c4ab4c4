"""Being asked to stop: signals become a flag that long work looks at between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from types import FrameType

from artclf.errors import Interrupted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""A stop from outside, Ctrl-C, and a terminal that was closed."""

GRACE_S = 120.0
"""How long after SIGTERM whoever sent it may wait before SIGKILL: SageMaker's StopTrainingJob waits 120 s (API
reference), a spot notice comes two minutes ahead (EC2 User Guide, "Spot Instance interruption notices")."""

FAREWELL = "what was committed before is saved. Start again and it goes on."
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it


def catch_stop_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """Lets a handler have every one of STOP_SIGNALS, but for SIGHUP where nohup has it ignored."""
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


class StopRequest:
    """Whether this process was asked to stop, by what, and how much time it has."""

    def __init__(self) -> None:
        self.reason = ""
        self._kill_at: float | None = None
        self._insisted = False
        self._farewell = b""
        self._terminal = 2

    @property
    def requested(self) -> bool:
        """Whether anything asked for a stop."""
        return bool(self.reason)

    def seconds_left(self) -> float | None:
        """Returns how long this process may still run; None if nothing will end it by force."""
        return None if self._kill_at is None else self._kill_at - time.monotonic()

    def check(self) -> None:
        """Raises Interrupted if a stop was asked for; for work that has nothing to commit."""
        if self.requested:
            raise Interrupted(f"stopped by {self.reason}. Start again and it goes on.")

    @classmethod
    def on_signals(cls, farewell: str = FAREWELL) -> StopRequest:
        """Returns a request that STOP_SIGNALS set from now on; a second SIGTERM or Ctrl-C ends the process at once.

        It holds to the end of the process: a signal that comes when all is done changes nothing any more.

        Args:
            farewell: what people are told by a process that ends at once.
        """
        request = cls()
        request._farewell = f"{_SHOW_CURSOR}\nended at once; {farewell}\n".encode()
        request._terminal = os.dup(2)  # what loads TensorFlow hides the other one for a while
        # Python runs handlers between two steps of the main thread, which may be in one long call of TensorFlow
        # or wait for a dead disk. The byte that the system's own handler writes is heard by a thread at once.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=request._listen, args=[reader], name="signals", daemon=True).start()
        catch_stop_signals(lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # whoever started us may have held them back
        return request

    def _listen(self, reader: int) -> None:
        while heard := os.read(reader, 1):
            self._hear(signal.Signals(heard[0]))

    def _hear(self, number: signal.Signals) -> None:
        if number not in STOP_SIGNALS:
            return
        if number != signal.SIGHUP:  # of a closed terminal the system and the shell both tell: no second request
            if self._insisted:
                with contextlib.suppress(OSError):
                    os.write(self._terminal, self._farewell)
                os._exit(Interrupted.exit_code)
            self._insisted = True
        else:
            _write_to_nobody()
        if number == signal.SIGTERM:
            self._kill_at = time.monotonic() + GRACE_S
        self.reason = self.reason or number.name


def _write_to_nobody() -> None:
    """Lets what is printed from now on vanish instead of failing, where it went to a terminal, which is closed."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)
