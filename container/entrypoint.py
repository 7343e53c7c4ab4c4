"""The one command of every job: ``python -m container.entrypoint --run-uri URI``, or ``train`` in SageMaker's folders.

Starts the trainer on the run directory as a child, passes signals on, ends it at its deadline, and
makes sure that status.json holds a verdict also when the trainer could not write one (killed, out of
memory, refused before it began). A run of a bucket is brought here before and goes back as it grows
(container.remote). Signals are caught before anything heavy is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from artclf.command_line import run_command
from artclf.errors import ArtclfError, ConfigError, Interrupted
from artclf.interrupt import GRACE_S, STOP_SIGNALS, catch_stop_signals

if TYPE_CHECKING:
    from pathlib import Path

    from artclf.rundir import RunDir, RunStatus
    from container.sagemaker import SageMakerFolders


def main(argv: list[str]) -> int:
    """Runs one job to its end and returns the trainer's exit code."""
    trainer = Trainer()
    if argv in ([], ["train"]):
        from container.sagemaker import SageMakerFolders

        return train_in_sagemaker(SageMakerFolders.here(), trainer)
    parser = argparse.ArgumentParser(prog="python -m container.entrypoint", description="Run one job.")
    parser.add_argument("--run-uri", required=True, help="the run directory, with config.json and job.json in it")
    arguments = parser.parse_args(argv)
    from artclf.rundir import RunDir
    from artclf.storage import is_in_bucket, local_path

    if is_in_bucket(arguments.run_uri):
        return train_in_bucket(arguments.run_uri, trainer)
    run = RunDir(local_path(arguments.run_uri))
    if not run.config.is_file() or not run.job.is_file():
        raise ConfigError(f"{run.path}: expected a run directory with config.json and job.json; submit writes them.")
    return run_job(run, trainer)


def run_job(run: RunDir, trainer: Trainer) -> int:
    """Trains a run to its end or interruption, leaves a verdict, and returns the exit code."""
    before = run.known_status()
    try:
        max_hours = (run.read_job() or {}).get("max_hours")
    except ArtclfError as error:
        run.give_verdict("failed", str(error))
        raise
    code = trainer.run([sys.executable, "-m", "artclf.train", "--run-dir", str(run.path)], max_hours)
    return give_verdict(run, before, code, trainer)


class Trainer:
    """The trainer's process, and the stop signals that reached us for it."""

    def __init__(self) -> None:
        self.stopped_by = ""
        self.is_over_its_limit = False
        self.last_error = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._to_pass: deque[int] = deque()
        catch_stop_signals(self._heard)

    def run(self, command: list[str], max_hours: float | None = None) -> int:
        """Runs the trainer and returns its exit code, negative for the signal that killed it.

        Raises:
            Interrupted: if a stop was asked for before it was started.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            if not self.stopped_by:
                # The child begins with them blocked and opens them once it can handle them (StopRequest).
                # In a session of its own: what is sent to our whole group would else reach it twice, once through us.
                self._child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
                )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        self.check()
        self._pass_on()  # what came since the check: other threads of ours hear signals too, and may ask for a stop
        assert self._child is not None, "or check had raised"
        copier = threading.Thread(target=self._copy_errors, args=[self._child], daemon=True)
        copier.start()
        code = self._wait(self._child, max_hours)
        copier.join()
        return code

    def check(self) -> None:
        """Raises Interrupted if a stop was asked for before the trainer was started."""
        if self.stopped_by and self._child is None:
            raise Interrupted(f"stopped by {self.stopped_by} before the run began. Start again.")

    def stop(self, reason: str) -> None:
        """Lets the trainer save and end."""
        self.stopped_by = reason
        self._to_pass.append(signal.SIGTERM)
        self._pass_on()

    def _wait(self, child: subprocess.Popen[bytes], max_hours: float | None) -> int:
        try:
            return child.wait(max_hours * 3600 if max_hours else None)
        except subprocess.TimeoutExpired:
            self.stopped_by, self.is_over_its_limit = f"its limit of {max_hours:g} hours", True
            child.terminate()
        try:
            return child.wait(GRACE_S)
        except subprocess.TimeoutExpired:  # it hangs where no signal is heard
            child.kill()
            return child.wait()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = signal.Signals(number).name
        self._to_pass.append(number)
        self._pass_on()

    def _pass_on(self) -> None:
        """Sends the trainer what is to be passed on, each once, as soon as it is there."""
        with contextlib.suppress(IndexError):
            while self._child is not None:
                self._child.send_signal(self._to_pass.popleft())

    def _copy_errors(self, child: subprocess.Popen[bytes]) -> None:
        """Shows what the trainer writes to stderr and remembers its last error line, the reason if it fails early."""
        assert child.stderr is not None
        for line in child.stderr:
            with contextlib.suppress(OSError):  # nobody takes it any more: the trainer must not wait for that
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
            if line.startswith(b"error: "):
                self.last_error = line.decode(errors="replace").removeprefix("error: ").strip()


def give_verdict(run: RunDir, before: RunStatus | None, code: int, trainer: Trainer) -> int:
    """Writes the verdict that the trainer could not write itself, and returns the job's exit code.

    Args:
        before: the status when the job began; the same afterwards is not this attempt's word.
    """
    status = run.known_status()
    has_spoken = status is not None and status.state != "running" and status != before
    if has_spoken and trainer.is_over_its_limit and status is not None and status.state == "interrupted":
        run.give_verdict("interrupted", f"stopped by {trainer.stopped_by}")  # it knows the signal alone
    if code == 0 or has_spoken or run.is_locked():  # locked: another trainer is at work, the run is its own
        return code if code >= 0 else 1
    if trainer.stopped_by and (code < 0 or code == Interrupted.exit_code):
        run.give_verdict("interrupted", f"stopped by {trainer.stopped_by}")
        return Interrupted.exit_code
    if code < 0:
        reason = f"the trainer was killed by {signal.Signals(-code).name}"
        reason += " (out of memory?)" if code == -signal.SIGKILL else ""
    else:
        reason = trainer.last_error or f"the trainer ended with exit code {code} and no verdict"
    run.give_verdict("failed", reason)
    return code if code >= 0 else 1


def train_in_bucket(run_uri: str, trainer: Trainer) -> int:
    """Trains a run of a bucket, and leaves a reason of failure where SageMaker shows it, if it started us."""
    import logging

    from artclf.s3 import S3Storage
    from container.remote import RemoteRun
    from container.sagemaker import SageMakerFolders

    folders = SageMakerFolders.here()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with _failure_told(folders), _scratch() as scratch:
        remote = RemoteRun(
            S3Storage(run_uri),
            scratch / "run",
            _holder(),
            lost=lambda: trainer.stop("another machine that took the run over"),
            check=trainer.check,
        )
        run = remote.begin()
        try:
            code = run_job(run, trainer)
        finally:
            remote.end()
        return _told(folders, run, code)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Yields a folder of this machine to work in, which is removed at the end. Raises StorageError."""
    import tempfile
    from pathlib import Path

    from artclf.errors import StorageError

    try:
        folder = tempfile.TemporaryDirectory(prefix="artclf-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(
            f"no folder to work in: {error.strerror or error}. Give the container one that can be written, for example "
            f"with docker run --tmpfs /tmp, or name one in TMPDIR."
        ) from error
    with folder as path:
        yield Path(path)


def _holder() -> str:
    """Returns what names this job: SageMaker's name for it, which it keeps over interruptions, or one of our own."""
    return os.environ.get("TRAINING_JOB_NAME") or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def train_in_sagemaker(folders: SageMakerFolders, trainer: Trainer) -> int:
    """Trains what SageMaker's folders describe, and leaves the model or the reason of failure there."""
    with _failure_told(folders):
        run = folders.begin_run()
        code = run_job(run, trainer)
        if code == 0:
            folders.deliver()
    return _told(folders, run, code)


@contextlib.contextmanager
def _failure_told(folders: SageMakerFolders) -> Iterator[None]:
    """Leaves the reason of an error that passes where SageMaker shows it."""
    try:
        yield
    except ArtclfError as error:
        folders.report_failure(str(error))
        raise


def _told(folders: SageMakerFolders, run: RunDir, code: int) -> int:
    """Leaves the run's own word on why it failed where SageMaker shows it, if it did, and returns its exit code."""
    if code != 0:
        status = run.known_status()
        folders.report_failure(status.reason if status else f"the trainer ended with exit code {code}")
    return code


if __name__ == "__main__":
    run_command(main)
