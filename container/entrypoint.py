"""The one command that every job runs, on every backend: ``python -m container.entrypoint --run-uri URI``.

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

from artclf.errors import ConfigError, run_command
from artclf.rundir import RunDir, RunStatus, now
from artclf.storage import local_path


def main(argv: list[str]) -> int:
    """Runs one job to its end and returns the trainer's exit code."""
    parser = argparse.ArgumentParser(prog="python -m container.entrypoint", description="Run one job.")
    parser.add_argument("--run-uri", required=True, help="the run directory, with config.json and job.json in it")
    run = RunDir(local_path(parser.parse_args(argv).run_uri))
    if not run.config.is_file() or not run.job.is_file():
        raise ConfigError(f"{run.path}: expected a run directory with config.json and job.json; submit writes them.")
    code = run_trainer([sys.executable, "-m", "artclf.train", "--run-dir", str(run.path)])
    give_verdict(run, code)
    return code if code >= 0 else 1


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
