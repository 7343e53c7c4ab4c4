"""``python -m artclf.train``: what to train, from arguments or from the run directory; the loop is artclf.training.

What is heavy to import is imported once the arguments are known, so ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artclf.command_line import positive, positive_number, run_command
from artclf.errors import ArtclfError, ConfigError, ResumeError, StorageError, printable
from artclf.interrupt import StopRequest
from artclf.storage import check_writable, local_path
from artclf.watchdog import LEAST_S

if TYPE_CHECKING:
    from artclf.config import TrainConfig
    from artclf.records import Dataset
    from artclf.rundir import RunDir

SAMPLE_SETTINGS = {
    "model.name": "cnn_small",
    "data.image_size": 64,
    "train.epochs": 8,
    "model.dropout": 0.1,
}
"""What a bare ``python -m artclf.train`` trains: done in about a minute on two cores."""
DEFAULT_RUNS = Path("studies/single/runs")

log = logging.getLogger("artclf")


def main(argv: list[str]) -> int:
    """Runs ``python -m artclf.train``."""
    stop = StopRequest.on_signals()
    arguments = _parser().parse_args(argv)
    from artclf.training import Options, train

    screen = logging.StreamHandler(sys.stdout)
    screen.addFilter(lambda record: not getattr(record, "is_told_at_the_end", False))
    _log_to(screen, "%(message)s")
    run, dataset, config = _prepare_run(arguments, stop)
    check_writable(run.path)
    with run.locked():
        _refuse_other_settings(run, config, dataset, arguments)
        if not arguments.from_zero:
            _refuse_other_commits(run, config, dataset)
        if arguments.resume and not any(run.checkpoints.glob("gen-*")):
            raise ResumeError(f"{run.path}: --resume was given, but there is no committed state to go on from.")
        if arguments.data or not (run.job.exists() and run.config.exists()):  # what submit wrote stays as it is
            run.begin(config, dataset.place, dataset.digest)
        _log_to(logging.FileHandler(run.log, encoding="utf-8"), "%(asctime)s %(message)s")
        options = Options(arguments.threads, arguments.from_zero, arguments.hang_after * 60)
        log.info("run directory: %s", printable(os.path.relpath(run.path)))
        try:
            train(run, dataset, config, stop, options)
        except ArtclfError as error:  # on the screen it is the last line, of whoever ends the process
            log.error("%s", error, extra={"is_told_at_the_end": True})
            raise
    return 0


def _log_to(handler: logging.Handler, form: str) -> None:
    """Adds a place that our own lines go to; those of libraries stay where they were."""
    logging.raiseExceptions = False  # a full disk or a closed pipe may not litter the terminal with tracebacks
    handler.setFormatter(logging.Formatter(form, "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m artclf.train",
        description="Train one classifier. Without arguments: a small network on generated sample pictures.",
    )
    parser.add_argument("--data", metavar="D", help="a prepared data set, or a folder or zip of pictures")
    parser.add_argument("--run-dir", metavar="R", type=local_path, help="where the run leaves its files, and goes on")
    parser.add_argument("--config", metavar="F", type=Path, help="settings as JSON or YAML")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="settings", help="one setting, as in a grid"
    )
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="only go on: end with code 3 if nothing is committed yet")
    begin.add_argument("--from-zero", action="store_true", help="begin again; old commits are kept in checkpoint-1")
    parser.add_argument(
        "--hang-after",
        type=positive_number,
        metavar="MINUTES",
        default=LEAST_S / 60,
        help="how long no step may end, sleep not counted, before the run ends as hung, exit code 7 "
        "(default: %(default)g, at least ten times the usual step)",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="decoding threads (default: one a core, 8 at most)"
    )
    return parser


def _prepare_run(arguments: argparse.Namespace, stop: StopRequest) -> tuple[RunDir, Dataset, TrainConfig]:
    """Returns what to train: told by the arguments, or by the run directory where it already says so."""
    from artclf.config import TrainConfig, trial_id
    from artclf.datasets import SAMPLE, open_dataset
    from artclf.rundir import RunDir

    told = arguments.data or arguments.config or arguments.settings
    run = RunDir(arguments.run_dir) if arguments.run_dir else None
    if run is not None and run.path.exists() and not run.path.is_dir():
        raise ConfigError(f"{run.path}: expected a folder for the run, received a file.")
    job = _job_of(run, arguments) if run else None
    if run and job and not told:
        return run, _same_dataset(run, job), run.read_config()
    if arguments.resume and run and not job:
        raise ResumeError(f"{run.path}: --resume was given, but no run began here.")
    config = TrainConfig.from_settings(_settings(arguments, run), where="settings")
    if not told:
        print("No data named: training a small network on generated sample pictures.")
    dataset = open_dataset(arguments.data or (job or {}).get("dataset") or SAMPLE, stop.check)
    return run or RunDir(local_path(DEFAULT_RUNS / trial_id(config, dataset.digest))), dataset, config


def _job_of(run: RunDir, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Returns job.json; a damaged one counts as none where the data is named anew."""
    try:
        return run.read_job()
    except StorageError:
        if arguments.data:
            return None
        raise


def _settings(arguments: argparse.Namespace, run: RunDir | None) -> dict[str, Any]:
    """Returns the settings told by --config and --set, over those of the run if it began already."""
    from artclf.config import flatten, parse_setting
    from artclf.strict_yaml import load

    settings: dict[str, Any] = {} if arguments.data or arguments.config else dict(SAMPLE_SETTINGS)
    if run and run.config.exists() and not arguments.config:
        settings = run.read_config().flat()
    if arguments.config:
        try:
            text = arguments.config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{arguments.config}: expected a readable file of settings: {error}.") from error
        given = load(text, str(arguments.config)).value
        if not isinstance(given, dict):
            raise ConfigError(f"{arguments.config}: expected a mapping of settings, received something else.")
        settings.update(flatten(given))
    settings.update(dict(map(parse_setting, arguments.settings)))
    return settings


def _same_dataset(run: RunDir, job: dict[str, Any]) -> Dataset:
    from artclf.datasets import open_dataset

    dataset = open_dataset(job["dataset"])
    if changed := _changed_data(run, job, dataset):
        raise ResumeError(f"{job['dataset']}: {changed}. Use another run directory, or put the old data back.")
    return dataset


def _changed_data(run: RunDir, job: dict[str, Any], dataset: Dataset) -> str:
    """Returns how the data differs from what the run began with, or nothing."""
    from artclf.rundir import read_json

    if job["data_digest"] == dataset.digest:
        return ""
    before = (read_json(run.environment) or {}).get("data", "")
    return (
        f"the data set changed since this run began: it was {before} (digest {job['data_digest'][:12]}), "
        f"now {dataset.summary()} ({dataset.digest[:12]})"
    )


def _refuse_other_settings(run: RunDir, config: TrainConfig, dataset: Dataset, arguments: argparse.Namespace) -> None:
    from artclf.config import differences

    if not run.config.exists():
        return
    before = run.read_config()
    # What decides no result may differ: how often it is saved, say, or where the same weights lie.
    changed = differences(before.flat(), config.flat()) if before.canonical() != config.canonical() else []
    job = _job_of(run, arguments)
    if job and (other := _changed_data(run, job, dataset)):
        changed.append(other)
    if changed:
        raise ResumeError(f"{run.path}: not what this run began with: {'; '.join(changed)}. Use another run directory.")


def _refuse_other_commits(run: RunDir, config: TrainConfig, dataset: Dataset) -> None:
    """Refuses what does not fit the commits before any file tells of it: config.json or job.json may be lost."""
    from artclf.checkpoint import LocalGenerations, newest_state
    from artclf.config import differences, identity

    state = newest_state(LocalGenerations(run.checkpoints))
    before, now = state.get("of", {}) if state else {}, identity(config, dataset.digest)
    if before.get("trial", "") not in ("", now["trial"]):
        changed = "; ".join(differences(before.get("settings", {}), now["settings"]))
        raise ResumeError(
            f"{run.path}: its commits belong to other settings or data: {changed}. "
            f"Give those, or use another run directory."
        )


if __name__ == "__main__":
    run_command(main)
