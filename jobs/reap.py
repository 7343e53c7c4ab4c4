"""What a study left behind, on this machine or in its bucket."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from artclf.s3 import UnfinishedUpload
from artclf.storage import TEMPORARY
from jobs.bucket_study import BucketStudy
from jobs.spec import Backend, JobHandle
from jobs.study import Study


@dataclass(frozen=True)
class Leftover:
    """One thing that nothing needs any more.

    Attributes:
        where: a path or URI.
        size_mb: what it takes, in 10^6 bytes; None where that cannot be seen.
        remove: removes it; a process or job is asked to save and end, its run stays.
    """

    what: str
    where: str
    size_mb: float | None
    remove: Callable[[], object]


def leftovers(study: Study, wanted: set[str], backend: Backend) -> list[Leftover]:
    """Returns what was left behind by killed processes and earlier grids. The caller holds the study.

    Args:
        study: where to look.
        wanted: the ids of the trials that the grid names; their runs are never among the leftovers.
        backend: where its jobs run.
    """
    if isinstance(study, BucketStudy):
        at_work = _alive(study, backend)
        return [
            *_old_jobs(at_work, wanted, backend),
            *_old_bucket_runs(study, wanted, at_work),
            *_uploads(study, at_work),
        ]
    return [*_orphans(study), *_old_runs(study, wanted), *_unfinished(study)]


# -- on this machine -----------------------------------------------------------------------------


def _orphans(study: Study) -> Iterator[Leftover]:
    """Trainers that still run although no submitter waits for them."""
    for trial_id in study.trial_ids():
        run = study.run(trial_id)
        process = run.lock_holder()
        if process is not None:
            yield Leftover(f"trainer, process {process}", str(run.path), _size_mb(run.path), partial(_end, process))


def _old_runs(study: Study, wanted: set[str]) -> Iterator[Leftover]:
    for trial_id in study.trial_ids():
        run = study.run(trial_id)
        if trial_id not in wanted and not run.is_locked() and not run.is_complete():
            yield _on_disk("unfinished run of an earlier grid", run.path)


def _unfinished(study: Study) -> Iterator[Leftover]:
    """What writers that were killed did not rename."""
    for path in sorted(study.path.rglob(f"{TEMPORARY}*")):
        run = next((parent.name for parent in path.parents if parent.parent.name == "runs"), None)
        if run is None or not study.run(run).is_locked():
            yield _on_disk("unfinished file", path)


def _on_disk(what: str, path: Path) -> Leftover:
    return Leftover(what, str(path), _size_mb(path), partial(_remove, path))


def _size_mb(path: Path) -> float:
    """Returns what a file or folder takes, in 10^6 bytes; a trainer at work may rename or remove files meanwhile."""
    files = [path] if path.is_file() else [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    size = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            size += file.stat().st_size
    return size / 1e6


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _end(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)


# -- in a bucket ---------------------------------------------------------------------------------


def _old_jobs(at_work: Sequence[JobHandle], wanted: set[str], backend: Backend) -> Iterator[Leftover]:
    """Jobs of trials that the grid no longer names: they cost money and nobody waits for them."""
    for handle in at_work:
        if handle.trial_id not in wanted:
            yield Leftover("running job of an earlier grid", handle.name, None, partial(backend.stop, handle))


def _old_bucket_runs(study: BucketStudy, wanted: set[str], at_work: Sequence[JobHandle]) -> Iterator[Leftover]:
    needed = wanted | {handle.trial_id for handle in at_work}
    for trial_id in study.trial_ids():
        if trial_id not in needed and not study.is_complete(trial_id):
            size_mb, remove = study.run_in_bucket(trial_id)
            yield Leftover("unfinished run of an earlier grid", study.run_uri(trial_id), size_mb, remove)


def _uploads(study: BucketStudy, at_work: Sequence[JobHandle]) -> Iterator[Leftover]:
    """Parts of files whose uploaders were killed: no listing shows them, and they are billed."""
    uploading = tuple(f"runs/{handle.trial_id}/" for handle in at_work)
    for storage in (study.storage, study.shared):
        for upload in storage.unfinished_uploads():
            is_ours = storage is study.storage
            if (is_ours and upload.key.startswith(uploading)) or (not is_ours and not _is_old(upload)):
                continue
            where = f"{storage.uri}/{upload.key}"
            yield Leftover(f"unfinished upload, {upload.begun[:19]}", where, None, partial(storage.abort, upload))


def _is_old(upload: UnfinishedUpload) -> bool:
    """Says whether an upload can be no submitter's that is at work: what studies share, all of them put there."""
    try:
        return datetime.now(UTC) - datetime.fromisoformat(upload.begun) > timedelta(days=1)
    except (ValueError, TypeError):  # the server does not say since when
        return False


def _alive(study: BucketStudy, backend: Backend) -> list[JobHandle]:
    return [status.handle for status in backend.status(list(study.last_jobs().values())) if status.state.alive]
