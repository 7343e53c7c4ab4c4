"""Being asked to stop: signals become a flag that long work looks at between two steps."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from artclf.errors import Interrupted

# The escape code shows a terminal's cursor again, which a progress bar hides.
_ENDED_AT_ONCE = b"\x1b[?25h\nended at once; what was committed before is saved. Start again and it goes on.\n"


class StopRequest:
    """Whether this process was asked to stop, and by what."""

    def __init__(self) -> None:
        self.reason = ""

    @property
    def requested(self) -> bool:
        """Whether anything asked for a stop."""
        return bool(self.reason)

    def check(self) -> None:
        """Raises Interrupted if a stop was asked for; for work that has nothing to commit."""
        if self.requested:
            raise Interrupted(f"stopped by {self.reason}. Start again and it goes on.")

    @classmethod
    @contextmanager
    def on_signals(cls) -> Iterator[StopRequest]:
        """Yields a request that SIGTERM and SIGINT (Ctrl-C) set; a second signal ends the process at once."""
        request = cls()

        def handle(number: int, frame: FrameType | None) -> None:
            if request.requested:
                os.write(2, _ENDED_AT_ONCE)
                os._exit(Interrupted.exit_code)
            request.reason = signal.Signals(number).name

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, before)  # whoever started us may have held them back until now
        try:
            yield request
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
