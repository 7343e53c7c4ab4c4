"""Fake time: one that waits to be moved, one that runs faster than real time, one that moves with every request."""

from __future__ import annotations

import time
from datetime import UTC, datetime

START = datetime(2027, 1, 4, 9, 0, tzinfo=UTC)


class Clock:
    """Time that stands still until ``advance``."""

    def __init__(self, start: datetime = START) -> None:
        self._now = start.timestamp()

    def now(self) -> float:
        """Returns the fake time, in seconds since 1970."""
        return self._now

    def utc(self) -> datetime:
        """Returns the fake time as an aware UTC datetime."""
        return datetime.fromtimestamp(self.now(), UTC)

    def advance(self, seconds: float) -> None:
        """Moves the time forward."""
        self._now += seconds

    def look(self) -> None:
        """Notes that a request came in."""


class ScaledClock(Clock):
    """Time that runs ``speed`` times as fast as real time, for jobs that are real processes."""

    def __init__(self, speed: float = 1.0, start: datetime = START) -> None:
        super().__init__(start)
        self._speed = speed
        self._began = time.monotonic()

    def now(self) -> float:
        """Returns the fake time, in seconds since 1970."""
        return self._now + (time.monotonic() - self._began) * self._speed


class SteppingClock(Clock):
    """Time that moves ``step_s`` seconds with every request, for clients that wait by looking."""

    def __init__(self, step_s: float, start: datetime = START) -> None:
        super().__init__(start)
        self._step_s = step_s

    def look(self) -> None:
        """Moves the time forward by one step."""
        self.advance(self._step_s)
