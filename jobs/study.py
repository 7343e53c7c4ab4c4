"""The folder of one study: the name and form of each file above its runs.

<root>/<study>/
  study.json      what the study is: its data, objective and trials, as last submitted
  jobs/*.json     a record of each job that was submitted
  runs/<trial_id>/
  results.csv report.md report.html best/
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from artclf.errors import ConfigError, StorageError
from artclf.locks import exclusive, holder
from artclf.records import Dataset
from artclf.rundir import RunDir, read_json
from artclf.storage import LocalStorage, Storage, check_writable, is_in_bucket, local_path
from jobs.grid import Expansion, Grid, Trial
from jobs.spec import JobHandle

MOST_ROUNDS = 20
"""So often study.json is put again after another submitter was quicker."""


class Study:
    """One study's folder on this machine."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.path = root / name
        self.storage: Storage = LocalStorage(self.path)
        self._lock = self.path / ".submit.lock"

    @property
    def problems(self) -> list[str]:
        """What of the study could not be read at the last look; the rest was."""
        return []

    @property
    def uri(self) -> str:
        """Where the study is kept."""
        return str(self.path)

    def run(self, trial_id: str) -> RunDir:
        """Returns a trial's run directory on this machine."""
        return RunDir(self.path / "runs" / trial_id)

    def run_uri(self, trial_id: str) -> str:
        """Returns where a trial's run is kept: the one argument of its job."""
        return f"{self.uri}/runs/{trial_id}"

    def check(self) -> None:
        """Proves that the study can be written where it is kept. Raises ConfigError or StorageError."""
        check_writable(self.path)

    def refresh(self) -> None:
        """Looks again at what is kept elsewhere; here everything lies where it is kept."""

    def is_complete(self, trial_id: str) -> bool:
        """Says whether all that a finished run leaves is there."""
        return self.run(trial_id).is_complete()

    def fetch_model(self, trial_id: str) -> None:
        """Brings a finished run's model to its directory on this machine, where it lies elsewhere."""

    def publish(self, names: Iterable[str]) -> None:
        """Puts files or folders that were made here, such as the report, to where the study is kept."""

    def stops_asked(self) -> str:
        """Returns a word that changes whenever somebody asks, through the study, that nothing more is launched."""
        return ""

    def ask_to_stop(self, trials: Sequence[str] = ()) -> None:
        """Asks every submitter at work on the study, on any machine, to launch nothing more, or none of some trials."""

    def asked_of(self) -> frozenset[str]:
        """Returns the trials that the last request to stop names; none if it is about all."""
        return frozenset()

    def read(self) -> dict[str, Any] | None:
        """Returns study.json, or None if nothing was submitted yet. Raises StorageError if it is damaged."""
        path = self.path / "study.json"
        content = read_json(path)
        if content is None and not path.exists():
            return None
        fields = content if isinstance(content, dict) else {}
        trials = fields.get("trials")
        ids = (
            [t.get("trial_id") if isinstance(t, dict) else None for t in trials] if isinstance(trials, list) else [None]
        )
        texts = [*ids, fields.get("dataset"), fields.get("data_digest")]
        if not all(isinstance(text, str) for text in texts):
            raise StorageError(
                f"{self.uri}/study.json: not in the form of a study. Remove it and submit again; the runs are kept."
            )
        return fields

    def record(self, grid: Grid, dataset_path: str, data_digest: str, expansion: Expansion) -> None:
        """Writes study.json for this grid; the runs of trials that it no longer names stay.

        Raises:
            ConfigError: if the study was submitted with other data before.
        """
        content = {
            "study": self.name,
            "grid": os.path.relpath(grid.path),
            "dataset": dataset_path,
            "data_digest": data_digest,
            "objective": asdict(grid.objective),
            "resources": asdict(grid.resources),
            "varying": list(expansion.varying),
            "trials": [{"trial_id": t.trial_id, "label": t.label, "params": t.params} for t in expansion.trials],
        }
        written = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
        for _ in range(MOST_ROUNDS):
            if self.check_data(data_digest) == content or self._put_study(written):
                return
        raise StorageError(
            f"{self.uri}/study.json: others change it all the time, or what is listed is not what is there. Try again."
        )

    def check_data(self, data_digest: str) -> dict[str, Any] | None:
        """Returns study.json as it is; raises ConfigError if the study was submitted with other data."""
        before = self.read()
        if before is not None and before["data_digest"] != data_digest:
            raise ConfigError(
                f"{self.uri}: this study was submitted with the data {before['data_digest'][:12]}, "
                f"now the data set is {data_digest[:12]}. Give the study another name, or move the old one away."
            )
        return before

    def _put_study(self, content: bytes) -> bool:
        """Writes study.json, unless another submitter changed it since the last look; says whether it did."""
        self.storage.write("study.json", content)
        return True

    def begin_run(self, trial: Trial, dataset_path: str, data_digest: str, max_hours: float) -> None:
        """Writes what a run needs to begin, if it is not there yet."""
        self.run(trial.trial_id).begin(trial.config, dataset_path, data_digest, max_hours=max_hours)

    def share_dataset(
        self, dataset: Dataset, say: Callable[[str], None], check: Callable[[], None] = lambda: None
    ) -> str:
        """Makes sure that jobs can read a data set, and returns where they find it.

        Args:
            say: is told how far it is.
            check: is called between files; what it raises ends it, and the next time goes on from there.
        """
        return dataset.place

    def record_job(self, handle: JobHandle) -> None:
        """Keeps the record of a job that was, or is about to be, submitted."""
        self.storage.write(f"jobs/{handle.name}.json", handle.to_json())

    def last_jobs(self) -> dict[str, JobHandle]:
        """Returns the last job of each trial that ever had one."""
        last: dict[str, JobHandle] = {}
        if not (self.path / "jobs").is_dir():
            return last
        here = LocalStorage(self.path)
        for key in here.list("jobs"):
            if key.endswith(".json"):
                try:
                    handle = JobHandle.from_json(here.read(key), str(self.path / key))
                except ConfigError:
                    continue  # what became of the trial is told by its run directory all the same
                known = last.get(handle.trial_id)
                if known is None or known.attempt < handle.attempt:
                    last[handle.trial_id] = handle
        return last

    def trial_ids(self) -> list[str]:
        """Returns the ids of all runs on disk, those of earlier grids too."""
        runs = self.path / "runs"
        return sorted(path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Holds the study for one submitter. Raises ConfigError if another one is at work."""
        with exclusive(self._lock, f"{self.path}: another submit is at work on this study"):
            yield

    def submitter(self) -> int | None:
        """Returns the process id of the submitter at work here, or None."""
        return holder(self._lock)


def open_study(root: str, name: str, account: str | None = None, region: str | None = None) -> Study:
    """Returns the study of that name below a folder or an s3:// prefix.

    Args:
        account, region: that the bucket, if it is one, must belong to.

    Raises:
        ConfigError: if the root is a file, or names no bucket that can be used.
    """
    if is_in_bucket(root):
        from jobs.bucket_study import BucketStudy

        return BucketStudy(root, name, account, region)
    folder = local_path(root)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--root {root}: expected a folder for studies, received a file.")
    return Study(folder, name)
