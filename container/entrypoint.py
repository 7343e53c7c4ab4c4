"""The one command of every job: ``python -m container.entrypoint --run-uri URI``, or ``train`` in SageMaker's folders.

Starts the trainer on the run directory as a child, passes signals on, and makes sure that
status.json holds a verdict also when the trainer could not write one (killed, out of memory).
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from dataclasses import replace
from types import FrameType

from artclf.errors import ArtclfError, ConfigError, run_command
from artclf.rundir import RunDir, RunStatus, now
from artclf.storage import local_path
from container.sagemaker import SageMakerFolders


def main(argv: list[str]) -> int:
    """Runs one job to its end and returns the trainer's exit code."""
    if argv in ([], ["train"]):
        return train_in_sagemaker(SageMakerFolders.here())
    parser = argparse.ArgumentParser(prog="python -m container.entrypoint", description="Run one job.")
    parser.add_argument("--run-uri", required=True, help="the run directory, with config.json and job.json in it")
    run = RunDir(local_path(parser.parse_args(argv).run_uri))
    if not run.config.is_file() or not run.job.is_file():
        raise ConfigError(f"{run.path}: expected a run directory with config.json and job.json; submit writes them.")
    return run_job(run)


def run_job(run: RunDir) -> int:
    """Trains a run to its end or interruption and returns the exit code."""
    code = run_trainer([sys.executable, "-m", "artclf.train", "--run-dir", str(run.path)])
    give_verdict(run, code)
    return code if code >= 0 else 1


def train_in_sagemaker(folders: SageMakerFolders) -> int:
    """Trains what SageMaker's folders describe, and leaves the model or the reason of failure there."""
    try:
        run = folders.begin_run()
        code = run_job(run)
        if code == 0:
            folders.deliver()
            return 0
    except ArtclfError as error:
        if folders.config.parent.is_dir():
            folders.report_failure(str(error))
        raise
    status = run.read_status()
    folders.report_failure(status.reason if status else f"the trainer ended with exit code {code}")
    return code


def run_trainer(command: list[str]) -> int:
    """Runs the trainer and returns its exit code, negative for the signal that killed it.

    Stop signals that come before the child exists are kept and passed on once it does.
    """
    early: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    for kept in early:
        child.send_signal(kept)
    return child.wait()


def give_verdict(run: RunDir, code: int) -> None:
    """Writes the verdict that a killed trainer could not write itself."""
    status = run.read_status()
    if (status is not None and status.state != "running") or run.is_locked():
        return
    if code < 0:
        reason = f"the trainer was killed by {signal.Signals(-code).name}"
        reason += " (out of memory?)" if code == -signal.SIGKILL else ""
    else:
        reason = f"the trainer ended with exit code {code} and no verdict"
    run.write_status(replace(status or RunStatus("failed"), state="failed", reason=reason, ended=now()))


if __name__ == "__main__":
    run_command(main)
