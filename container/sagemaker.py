"""SageMaker's folder contract: what the platform puts below /opt/ml before ``train``, and what it takes from there.

Facts and names are those of the SageMaker Developer Guide, "How Amazon SageMaker Provides Training
Information". Turns hyperparameters into a run directory and, at the end, a run into /opt/ml/model.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from artclf.config import TrainConfig, differences
from artclf.errors import ConfigError, ResumeError, StorageError, printable, storage_error
from artclf.rundir import RunDir
from artclf.storage import make_folder
from artclf.strict_yaml import parse_value

BASE = "/opt/ml"
CHANNEL = "dataset"
FAILURE_CHARACTERS = 1024  # of the failure file become FailureReason (Developer Guide, "Signals … Failure")
PLATFORM_WORDS = ("sagemaker_", "_tuning_objective_metric")  # hyperparameters that are not the user's


class SageMakerFolders:
    """The platform's folders below a base, which is /opt/ml but in tests."""

    def __init__(self, base: Path, checkpoints: Path | None = None) -> None:
        self.config = base / "input" / "config"
        self.channel = base / "input" / "data" / CHANNEL
        self.run = RunDir(checkpoints or base / "checkpoints")
        self.model = base / "model"
        self.failure = base / "output" / "failure"

    @classmethod
    def here(cls) -> SageMakerFolders:
        """Returns the folders of this container (ARTCLF_SAGEMAKER_BASE moves them, for tests; ARTCLF_CHECKPOINTS
        names the one for checkpoints where the platform has none, which is so in the SDK's local mode)."""
        checkpoints = os.environ.get("ARTCLF_CHECKPOINTS")
        return cls(Path(os.environ.get("ARTCLF_SAGEMAKER_BASE", BASE)), Path(checkpoints) if checkpoints else None)

    def begin_run(self) -> RunDir:
        """Writes config.json and job.json from what the platform left, and returns the run directory.

        Raises:
            ConfigError: for several hosts, unknown or wrong hyperparameters, or a missing channel.
            ResumeError: if the folder for checkpoints holds a run with other hyperparameters.
        """
        from artclf.datasets import open_dataset

        if not self.config.parent.is_dir():
            raise ConfigError(
                f"{self.config.parent}: not started by SageMaker (no such folder). Expected --run-uri URI, or the "
                f"word train with SageMaker's folders."
            )
        self._refuse_several_hosts()
        config = TrainConfig.from_settings(self._settings(), where="hyperparameters")
        if not self.channel.is_dir():
            raise ConfigError(f"{self.channel}: expected an input channel named {CHANNEL}, found none.")
        dataset = open_dataset(str(self.channel))
        self.run.begin(config, dataset.place, dataset.digest)
        kept = self.run.read_config()
        if kept != config and kept.canonical() != config.canonical():
            changed = "; ".join(differences(kept.flat(), config.flat()))
            raise ResumeError(
                f"{self.run.path}: holds a run with other hyperparameters: {changed}. Give each job that is not to go "
                f"on with another one a CheckpointConfig.S3Uri of its own."
            )
        return self.run

    def deliver(self) -> None:
        """Copies all of the finished run but its commits to where the platform packs model.tar.gz from.

        Raises:
            StorageError: if it does not fit there.
        """
        run = self.run
        make_folder(self.model / run.evaluation.name)
        files = [run.model, run.model_json, run.metrics, run.environment, run.log, run.status]
        for path in (*files, *run.evaluation.iterdir()):
            try:
                shutil.copy2(path, self.model / path.relative_to(run.path))
            except OSError as error:
                raise storage_error("write", self.model / path.relative_to(run.path), error) from error

    def report_failure(self, reason: str) -> None:
        """Writes the file whose text the platform shows as the reason of failure, where there is a platform. The
        reason is printed too: where it cannot be written nothing else takes its place."""
        if not self.config.parent.is_dir():
            return
        with contextlib.suppress(OSError, StorageError):
            make_folder(self.failure.parent)
            self.failure.write_text(printable(" ".join(reason.split()))[:FAILURE_CHARACTERS], encoding="utf-8")

    def _settings(self) -> dict[str, Any]:
        """Returns the settings; every value arrives as a string and is read as in a grid file."""
        given = self._read("hyperparameters.json")
        return {
            name: parse_value(value, f"hyperparameters: {name}") if isinstance(value, str) else value
            for name, value in given.items()
            if not name.startswith(PLATFORM_WORDS)
        }

    def _refuse_several_hosts(self) -> None:
        hosts = self._read("resourceconfig.json").get("hosts", [])
        if not isinstance(hosts, list):
            raise ConfigError(
                f"{self.config / 'resourceconfig.json'}: expected a list of hosts, received {hosts!r:.80}."
            )
        if len(hosts) > 1:
            raise ConfigError(f"expected one host for one trial, received {len(hosts)}. Set InstanceCount to 1.")

    def _read(self, name: str) -> dict[str, Any]:
        path = self.config / name
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not readable as JSON: {error}.") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: expected an object of strings, received something else.")
        return content
