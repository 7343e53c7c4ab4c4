"""Being asked to stop: signals become a flag that long work looks at between two steps."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from artclf.errors import Interrupted

GRACE_S = 120.0
"""How long after SIGTERM whoever sent it may wait before SIGKILL: SageMaker's StopTrainingJob waits 120 s (API
reference), a spot notice comes two minutes ahead (EC2 User Guide, "Spot Instance interruption notices")."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""A stop from outside, Ctrl-C, and a terminal that was closed."""

# The escape code shows a terminal's cursor again, which a progress bar hides.
_ENDED_AT_ONCE = b"\x1b[?25h\nended at once; what was committed before is saved. Start again and it goes on.\n"


class StopRequest:
    """Whether this process was asked to stop, by what, and how much time it has."""

    def __init__(self) -> None:
        self.reason = ""
        self._kill_at: float | None = None

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
    def on_signals(cls) -> StopRequest:
        """Returns a request that STOP_SIGNALS set from now on; a second signal ends the process at once.

        It holds to the end of the process: a signal that comes when all is done changes nothing any more.
        """
        request = cls()

        def handle(number: int, frame: FrameType | None) -> None:
            if request.requested:
                os.write(2, _ENDED_AT_ONCE)
                os._exit(Interrupted.exit_code)
            if number == signal.SIGTERM:
                request._kill_at = time.monotonic() + GRACE_S
            request.reason = signal.Signals(number).name

        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
                signal.signal(number, handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # whoever started us may have held them back
        return request
