"""Who works on a run in a bucket: one record, kept alive by its holder, taken over only once it is dead.

Clocks of two machines are never compared: whoever finds the lease held watches it by its own clock, and takes it
over, by compare-and-swap, if nothing changed for as long as its holder promised to renew it.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable

from artclf.errors import ConfigError, StorageError
from artclf.s3 import S3Storage

log = logging.getLogger("artclf")

KEY = "lease.json"
LIFE_S = 60.0
"""A holder that has not renewed its lease for so long is dead."""
LONGEST_LIFE_S = 600.0  # whatever a record says: somebody waits for it


class LeaseLost(StorageError):
    """Another machine has taken the run over."""


class Lease:
    """The right to write to one run.

    Args:
        storage: the run's prefix.
        holder: names this machine's job; a lease of the same job is taken over at once, since a service that
            starts a job again (SageMaker, after an interruption) has ended it before.
        life_s: for how long it holds without being renewed.
        sleep: waits; tests pass their own.
        check: is called between two looks at another's lease; raises to end the wait.
    """

    def __init__(
        self,
        storage: S3Storage,
        holder: str,
        life_s: float = LIFE_S,
        sleep: Callable[[float], None] = time.sleep,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._storage, self._holder, self._life_s, self._sleep = storage, holder, life_s, sleep
        self._check = check
        self._version = ""
        self._count = 0
        self._turn = threading.Lock()  # of those that renew it

    def take(self) -> None:
        """Takes the lease, after waiting for a dead holder's to run out.

        Raises:
            ConfigError: if a living holder renews it.
            StorageError: if the record is damaged.
        """
        taken = None
        while taken is None:
            try:
                taken = self._storage.create_versioned(KEY, self._content(self._holder)) or self._taken_over()
            except FileNotFoundError:  # somebody removed it meanwhile
                continue
        self._version = taken

    def _taken_over(self) -> str | None:
        """Takes the lease from a holder that is dead, let it go, or is this very job; None if another was quicker, or
        the holder came to life again: what is replaced is the record that was looked at last, and no later one."""
        holder, count, life_s, version = self._read()
        if holder and holder != self._holder:
            count, version = self._wait_for_death(holder, count, life_s, version)
        self._count = count + 1
        return self._storage.replace(KEY, self._content(self._holder), version)

    def renew(self) -> None:
        """Says that the holder lives. Raises LeaseLost if another one holds the lease now."""
        with self._turn:
            self._count += 1
            renewed = self._storage.replace(KEY, self._content(self._holder), self._version)
            if renewed is None:
                raise LeaseLost(
                    f"{self._storage.uri}: another machine has taken this run over; nothing more is written."
                )
            self._version = renewed

    def release(self) -> None:
        """Lets the next one take the lease at once; one that was lost is left alone."""
        with self._turn:
            self._storage.replace(KEY, self._content(""), self._version)

    def _wait_for_death(self, holder: str, count: int, life_s: float, version: str) -> tuple[int, str]:
        """Returns the count and the version of the record of a holder that is dead or has let go.

        Raises:
            ConfigError: if a living holder renews it.
        """
        log.warning("%s held this run last: waiting %.0f s for a sign of it, else it is taken over", holder, life_s)
        waited = 0.0
        while waited <= life_s:
            self._check()
            pause = min(5.0, life_s / 4)
            self._sleep(pause)
            waited += pause
            now_holder, now_count, _, version = self._read()
            if not now_holder:
                return now_count, version
            if (now_holder, now_count) != (holder, count):
                raise ConfigError(f"{self._storage.uri}: another machine is at work on this run ({now_holder}).")
        return count, version

    def _content(self, holder: str) -> bytes:
        return json.dumps({"holder": holder, "count": self._count, "seconds": self._life_s}).encode()

    def _read(self) -> tuple[str, int, float, str]:
        content, version = self._storage.read_versioned(KEY)
        try:
            lease = json.loads(content)
            life_s = float(lease["seconds"])
            if not 0 < life_s < math.inf:
                raise ValueError(f"seconds: {life_s}")
            return str(lease["holder"]), int(lease["count"]), min(life_s, LONGEST_LIFE_S), version
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise StorageError(
                f"{self._storage.uri}/{KEY}: damaged, so nobody can say who works on this run. "
                f"Make sure that no job does, and delete it."
            ) from error
