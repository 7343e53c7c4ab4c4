"""The directory that a run leaves behind: the name, form and writing order of each of its files.

runs/<trial_id>/
  config.json       the settings; written by whoever starts the run, never changed
  job.json          the data set's place and digest, and max_hours of the latest launch
  status.json       how the run stands; the only word on how it ended
  metrics.jsonl     a line an epoch
  checkpoint/       the newest committed states (artclf.checkpoint)
  evaluation/       val.json test.json predictions_val.csv predictions_test.csv
  model.keras model.json environment.json log.txt progress.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from artclf.config import TrainConfig
from artclf.errors import ConfigError, StorageError, storage_error
from artclf.locks import exclusive, holder, is_held
from artclf.storage import atomic_file, free_path

State = Literal["running", "done", "failed", "interrupted", "diverged"]
STATES: tuple[State, ...] = ("running", "done", "failed", "interrupted", "diverged")


@dataclass(frozen=True)
class RunStatus:
    """How a run stands, by its own word.

    Attributes:
        epoch: epochs that are finished and committed.
        attempt: how often it was started, from 1.
        started: when the first attempt began, and ended when the last one ended, ISO 8601 UTC.
        seconds: time spent in all attempts.
    """

    state: State
    reason: str = ""
    epoch: int = 0
    attempt: int = 1
    started: str = ""
    ended: str = ""
    seconds: float = 0.0


def now() -> str:
    """Returns the present time, ISO 8601 UTC to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_MOST = 1e9
"""No number of a status or a job is as large, or it is damaged: seconds, epochs, hours."""


class RunDir:
    """One run's directory on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.job = path / "job.json"
        self.status = path / "status.json"
        self.progress = path / "progress.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoint"
        self.evaluation = path / "evaluation"
        self.model = path / "model.keras"
        self.model_json = path / "model.json"
        self.environment = path / "environment.json"
        self.log = path / "log.txt"
        self._lock = path / ".lock"
        self._is_ours: Callable[[], bool] = lambda: True

    def evaluation_json(self, split: str) -> Path:
        """Returns the path of a split's scores."""
        return self.evaluation / f"{split}.json"

    def predictions_csv(self, split: str) -> Path:
        """Returns the path of a split's probabilities, picture by picture."""
        return self.evaluation / f"predictions_{split}.csv"

    def begin(self, config: TrainConfig, dataset: str, data_digest: str, **limits: float) -> None:
        """Writes what a run needs to begin: job.json first, so that a run with settings always has its data.

        Args:
            config: the settings; those that are there already stay.
            dataset: where the prepared data set lies, a folder or s3:// URI (Dataset.place).
            data_digest: its digest, which is checked when the run goes on.
            limits: ``max_hours`` of one job, if there is such a limit.
        """
        write_json(self.job, {"dataset": dataset, "data_digest": data_digest, **limits})
        if not self.config.exists():
            with atomic_file(self.config) as temporary:
                temporary.write_text(config.to_json(), encoding="utf-8")

    def read_config(self) -> TrainConfig:
        """Returns the run's settings. Raises ConfigError if the file is missing or wrong."""
        settings = read_json(self.config)
        if settings is None:
            raise ConfigError(f"{self.config}: expected the run's settings, found no file.")
        if not isinstance(settings, dict):
            raise ConfigError(f"{self.config}: expected a mapping of settings, received something else.")
        return TrainConfig.from_settings(settings, where=str(self.config))

    def read_status(self) -> RunStatus | None:
        """Returns the run's own word on how it stands, or None if it never began."""
        content = read_json(self.status)
        if content is None:
            return None
        fields = content if isinstance(content, dict) else {}
        known = {k: v for k, v in fields.items() if k in RunStatus.__dataclass_fields__}
        if known.get("state") not in STATES:
            raise StorageError(f"{self.status}: expected a state of {', '.join(STATES)}, received {content!r:.80}.")
        kinds = {name: type(default) for name, default in asdict(RunStatus("running")).items()}
        for name, value in known.items():
            fits = isinstance(value, int | float) if kinds[name] is float else isinstance(value, kinds[name])
            if not fits or isinstance(value, bool) or (isinstance(value, int | float) and not abs(value) < _MOST):
                raise StorageError(
                    f"{self.status}: expected {name} to be a {kinds[name].__name__}, received {value!r:.80}."
                )
        return RunStatus(**known)

    def known_status(self) -> RunStatus | None:
        """Returns what ``read_status`` does; None also where the status is damaged."""
        try:
            return self.read_status()
        except StorageError:
            return None

    def give_verdict(self, state: State, reason: str) -> None:
        """Writes how the run ended, in the place of a trainer that could not."""
        known = self.known_status() or RunStatus("failed", started=now())
        self.write_status(replace(known, state=state, reason=reason, ended=now()))

    def read_job(self) -> dict[str, Any] | None:
        """Returns job.json: where the data is and its digest; None if the run did not begin.

        Raises:
            StorageError: if it is not in that form.
        """
        job = read_json(self.job)
        if job is None and not self.job.exists():
            return None
        texts = [job.get("dataset"), job.get("data_digest")] if isinstance(job, dict) else []
        if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            raise StorageError(f"{self.job}: expected the data set's place and digest. Name the data set with --data.")
        hours = job.get("max_hours", 1)
        if isinstance(hours, bool) or not isinstance(hours, int | float) or not 0 < hours < _MOST:
            raise StorageError(f"{self.job}: expected max_hours to be a number above 0, received {hours!r:.40}.")
        return dict(job)

    def set_checkpoints_aside(self) -> Path | None:
        """Moves the committed states to a folder that nothing reads, and returns it; None if there were none."""
        if not self.checkpoints.exists():
            return None
        aside = free_path(self.checkpoints)
        try:
            os.rename(self.checkpoints, aside)
        except OSError as error:
            raise storage_error("set aside", self.checkpoints, error) from error
        return aside

    def left_when_done(self) -> list[Path]:
        """Returns all that a finished run leaves for others."""
        left = [self.model, self.model_json, self.environment, self.metrics]
        return left + [
            path(split) for path in (self.evaluation_json, self.predictions_csv) for split in ("val", "test")
        ]

    def is_complete(self) -> bool:
        """Says whether all that a finished run leaves is there."""
        return all(path.is_file() for path in self.left_when_done())

    def write_status(self, status: RunStatus) -> None:
        """Replaces the status in one step."""
        write_json(self.status, asdict(status))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the complete lines of metrics.jsonl; a line cut short by a crash is passed over."""
        try:
            text = self.metrics.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error("read", self.metrics, error) from error
        complete, _, _ = text.rpartition("\n")
        try:
            lines = [json.loads(line) for line in complete.split("\n") if line]
        except (ValueError, RecursionError) as error:
            raise StorageError(
                f"{self.metrics}: expected one JSON object a line, received another: {error}."
            ) from error
        if not all(isinstance(line, dict) for line in lines):
            raise StorageError(f"{self.metrics}: expected one JSON object a line, received something else.")
        return lines

    def write_metrics(self, epochs: list[dict[str, Any]]) -> None:
        """Replaces metrics.jsonl by one line for each epoch given."""
        with atomic_file(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))

    def is_locked(self) -> bool:
        """Says whether a trainer is at work here now (on this machine)."""
        return is_held(self._lock)

    def lock_holder(self) -> int | None:
        """Returns the process id of the trainer at work here (on this machine), or None."""
        return holder(self._lock)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory for one trainer.

        Raises:
            ConfigError: if another trainer holds it.
        """
        with exclusive(self._lock, f"{self.path}: another trainer is at work in this run directory") as is_ours:
            self._is_ours = is_ours
            yield

    def check_lock(self) -> None:
        """Raises StorageError if the lock that this process holds was removed, so that another trainer may be here."""
        if not self._is_ours():
            raise StorageError(f"{self._lock}: was removed under a trainer at work, which ends, to harm no other one.")


def read_json(path: Path) -> Any:
    """Returns a file's JSON value, or None if there is no file.

    Raises:
        StorageError: if it is not readable as JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error("read", path, error) from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path}: not readable as JSON: {error}.") from error


def write_json(path: Path, value: Any) -> None:
    """Replaces a file by a JSON value, in one step."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
