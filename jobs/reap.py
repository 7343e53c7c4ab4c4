"""What a study left behind on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from artclf.storage import TEMPORARY
from jobs.study import Study


@dataclass(frozen=True)
class Leftover:
    """One thing that nothing needs any more: a path, or a process at work on it."""

    what: str
    path: Path
    process: int | None = None

    @property
    def size_mb(self) -> float:
        """What it takes on the disk, in 10^6 bytes."""
        files = [self.path] if self.path.is_file() else [file for file in self.path.rglob("*") if file.is_file()]
        return sum(file.stat().st_size for file in files) / 1e6

    def remove(self) -> None:
        """Removes it; a process is asked to save and end, its run stays."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGTERM)
        elif self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


def leftovers(study: Study, wanted: set[str]) -> list[Leftover]:
    """Returns what was left behind by killed processes and earlier grids. The caller holds the study.

    Args:
        study: where to look.
        wanted: the ids of the trials that the grid names; their runs are never among the leftovers.
    """
    return [*_orphans(study), *_old_runs(study, wanted), *_unfinished(study)]


def _orphans(study: Study) -> Iterator[Leftover]:
    """Trainers that still run although no submitter waits for them."""
    for trial_id in study.trial_ids():
        run = study.run(trial_id)
        process = run.lock_holder()
        if process is not None:
            yield Leftover(f"trainer, process {process}", run.path, process)


def _old_runs(study: Study, wanted: set[str]) -> Iterator[Leftover]:
    for trial_id in study.trial_ids():
        run = study.run(trial_id)
        if trial_id not in wanted and not run.is_locked() and not run.is_complete():
            yield Leftover("unfinished run of an earlier grid", run.path)


def _unfinished(study: Study) -> Iterator[Leftover]:
    """What writers that were killed did not rename."""
    for path in sorted(study.path.rglob(f"{TEMPORARY}*")):
        run = next((parent.name for parent in path.parents if parent.parent.name == "runs"), None)
        if run is None or not study.run(run).is_locked():
            yield Leftover("unfinished file", path)
