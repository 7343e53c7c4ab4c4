"""Committing in the background: training waits only for the copy of its state, not for the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from artclf.checkpoint import Arrays, Checkpoints, size_bytes


@dataclass(frozen=True)
class Snapshot:
    """A copy of a run's state that nothing changes any more: what one generation holds.

    Attributes:
        state: all that is not an array, ready for JSON.
        arrays: by group and name; never written to after the hand-over.
    """

    state: Mapping[str, Any]
    arrays: Mapping[str, Arrays]


class Saver:
    """Commits snapshots in a thread of its own, one after the other.

    While one is being written at most one waits; a newer one takes its place, so a slow disk costs
    generations in between but neither memory nor training time. What went wrong in the thread is
    raised by the next call.

    Args:
        checkpoints: where to.
        committed: is called in the thread with each state that is safe on the disk.
    """

    def __init__(self, checkpoints: Checkpoints, committed: Callable[[Mapping[str, Any]], None]) -> None:
        self._checkpoints, self._committed = checkpoints, committed
        self._changed = threading.Condition()
        self._waiting: Snapshot | None = None
        self._writing: Snapshot | None = None
        self._begun = 0.0
        self._closed = False
        self._problem: BaseException | None = None
        self._seconds_per_byte = 0.0
        self._thread = threading.Thread(target=self._work, name="saver", daemon=True)
        self._thread.start()

    def save(self, snapshot: Snapshot) -> None:
        """Hands a snapshot over. Raises what an earlier one met."""
        with self._changed:
            self.check()
            self._waiting = snapshot
            self._changed.notify_all()

    def check(self) -> None:
        """Raises what a commit in the background met, if one did."""
        if self._problem is not None:
            raise self._problem

    def flush(self) -> None:
        """Waits until all that was handed over is committed. Raises what went wrong."""
        with self._changed:
            self._changed.wait_for(self._is_idle)
            self.check()

    def seconds_until_committed(self, snapshot: Snapshot) -> float:
        """Returns how long it may take until a snapshot handed over now is committed, the one that is being
        written included, as the slowest commit so far tells; 0 if there was none.

        The first one, if it is being written now, is waited for.
        """
        if not self._seconds_per_byte:
            self.flush()
        with self._changed:
            under_way = self._expected_seconds(self._writing) - (time.monotonic() - self._begun) if self._writing else 0
        return max(0, under_way) + self._expected_seconds(snapshot)

    def _expected_seconds(self, snapshot: Snapshot) -> float:
        return self._seconds_per_byte * size_bytes(snapshot.arrays)

    def give_up_waiting(self) -> None:
        """Forgets the snapshot that waits, and waits for the one that is being written. Raises what went wrong."""
        with self._changed:
            self._waiting = None
        self.flush()

    def close(self) -> None:
        """Commits what waits and ends the thread; what goes wrong is kept for ``check``."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _is_idle(self) -> bool:
        return self._problem is not None or (self._waiting is None and self._writing is None)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                snapshot, self._waiting = self._waiting, None
                if snapshot is None or self._problem is not None:
                    return
                self._writing, self._begun = snapshot, time.monotonic()
            try:
                self._commit(snapshot)
            except BaseException as error:  # whatever it is, it belongs to whoever asked for the commit
                self._problem = error
            with self._changed:
                self._writing = None
                self._changed.notify_all()
                if self._problem is not None:
                    return

    def _commit(self, snapshot: Snapshot) -> None:
        self._checkpoints.commit(snapshot.state, snapshot.arrays)
        pace = (time.monotonic() - self._begun) / max(1, size_bytes(snapshot.arrays))
        self._seconds_per_byte = max(self._seconds_per_byte, pace)
        self._committed(snapshot.state)
