"""SageMaker's container contract on this machine: the real image under the SageMaker SDK's local mode, on Docker.

Each job is a process of its own (``python -m jobs.backends.sagemaker_local``): the SDK takes seconds to import and
then waits for its one container. What its local mode lacks, the job puts beside it:

- It has no folder for checkpoints. A channel takes its place, since channels can be written there, so a run that was
  stopped goes on; what the container leaves in it is shown in the run directory while it trains.
- It cannot stop a job. Signals go to the container by Docker, once its entry point listens.
- It makes its folders as whoever calls it, and images need not run as that user. They are made here before.
- It leaves containers and folders behind. They are removed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from artclf.cache import cache_folder, local_file
from artclf.command_line import run_command
from artclf.config import TrainConfig
from artclf.datasets import open_dataset
from artclf.errors import ArtclfError, ConfigError, Interrupted, ResumeError, StorageError, storage_error
from artclf.interrupt import GRACE_S, catch_stop_signals
from artclf.locks import turn
from artclf.rundir import RunDir, RunStatus, write_json
from artclf.storage import LocalStorage, atomic_folder, local_path, make_folder
from jobs.backends.local import PROJECT, LocalBackend
from jobs.docker import REVISION, docker
from jobs.model_archive import take_model
from jobs.processes import commands
from jobs.spec import BackendError, JobHandle, JobSpec

IMAGE, IMAGE_VARIABLE = "artclf:latest", "ARTCLF_IMAGE"
FOLDER = "sagemaker-local"
"""The job's own folder in the run directory, gone when it ends."""
HOST, NETWORK = "algo-1", "sagemaker-local"  # the SDK's names (sagemaker.train.local.local_container)
DATA = "/opt/ml/input/data"
"""Where a container finds its channels."""
CHECKPOINTS, WEIGHTS = "checkpoints", "weights"
CHANNELS = ("dataset", CHECKPOINTS, WEIGHTS)
PROJECT_LABEL = "com.docker.compose.project"
LOOK_S = 0.5
"""So often a job looks for signals to pass on and for progress to show."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class SageMakerLocalBackend(LocalBackend):
    """This machine's Docker. Jobs are child processes, watched and stopped as those of the local backend."""

    name = "sagemaker-local"

    def __init__(self) -> None:
        super().__init__()
        self._image = os.environ.get(IMAGE_VARIABLE) or IMAGE
        self._checked = False

    def check(self) -> None:
        """Proves that the SDK, Docker, its compose and the image are here. Raises ConfigError."""
        if importlib.util.find_spec("sagemaker") is None:
            raise ConfigError(f"{self.name} needs the SageMaker SDK, which is not installed here: make .venv/cloud")
        if shutil.which("docker") is None:
            raise ConfigError(f"{self.name} needs Docker, and there is no docker command here. Install Docker.")
        engine = docker("version", "--format", "{{.Server.Version}}")
        if engine.returncode:
            told = " ".join(engine.stderr.split())[:200]
            raise ConfigError(f"{self.name} needs Docker's engine, which does not answer: {told}")
        if docker("compose", "version").returncode and shutil.which("docker-compose") is None:
            raise ConfigError(
                f"{self.name} needs a compose: install Docker's docker-compose-plugin or Debian's docker-compose."
            )
        if docker("image", "inspect", self._image).returncode:
            raise ConfigError(
                f"{self._image}: Docker has no such image here. Make it with make image, or name another in "
                f"{IMAGE_VARIABLE}."
            )
        self._checked = True

    def notes(self) -> list[str]:
        """Returns what a person should know before jobs are started: which image, and whether it is of other code."""
        if shutil.which("docker") is None:
            return []
        label = f'{{{{index .Config.Labels "{REVISION}"}}}}'
        built = docker("image", "inspect", "--format", label, self._image).stdout.strip()
        git = ["git", "-C", str(PROJECT), "rev-parse", "HEAD"]
        here = ""
        if shutil.which("git"):
            here = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
        notes = [f"image {self._image}" + (f", of commit {built[:12]}" if built else "")]
        if built and here and built != here:
            notes.append(f"this checkout is at {here[:12]}; make image makes its image")
        return notes

    def request(self, spec: JobSpec) -> dict[str, Any]:
        """Returns the command line of the process that calls the SDK; what it asks of it depends on the run."""
        command = [sys.executable, "-m", "jobs.backends.sagemaker_local", "--run-dir", spec.run_uri]
        return {
            "command": [*command, "--name", spec.name, "--image", self._image],
            "cwd": str(PROJECT),
            "environment": {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
            "output": str(self._output(spec.run_uri, spec.name)),
        }

    def submit(self, spec: JobSpec) -> JobHandle:
        """Starts the job's process. Raises ConfigError if something that it needs is missing."""
        if not self._checked:
            self.check()
        return super().submit(spec)

    def logs(self, handle: JobHandle) -> Iterator[str]:
        """Yields what the job's processes printed, without the colours of compose."""
        yield from (_COLOUR.sub("", line) for line in super().logs(handle))

    def _entry_point(self, handle: JobHandle) -> int | None:
        ours = f"-m jobs.backends.sagemaker_local --run-dir {handle.run_uri} "
        return next((process for process, command in commands() if ours in command), None)


# -- what the SDK is asked for -------------------------------------------------------------------


def hyperparameters(config: TrainConfig, weights: str | None) -> dict[str, str]:
    """Returns every setting by dotted name, as the text that the container reads it back from.

    Args:
        config: the run's settings.
        weights: where the container finds the file of weights, if there is one.
    """
    settings = config.flat() | ({"model.weights": weights} if weights else {})
    # JSON in ASCII is YAML too; of what it leaves as it is, YAML refuses only DEL.
    return {name: json.dumps(value).replace("\x7f", "\\u007f") for name, value in settings.items()}


def trainer_arguments(
    name: str, image: str, image_digest: str, place: Path, dataset: Path, config: TrainConfig, weights: Path | None
) -> dict[str, Any]:
    """Returns what ModelTrainer is told, in plain values.

    Args:
        name: of the job.
        image, image_digest: its name here, and what names its content.
        place: the job's own folder.
        dataset: the prepared data set's folder.
        config: the run's settings.
        weights: the file of weights in the job's own folder, if there is one.

    Raises:
        ConfigError: if a folder has a name that Docker's compose reads as something else.
    """
    channels = {"dataset": dataset, CHECKPOINTS: place / CHECKPOINTS}
    if weights is not None:
        channels[WEIGHTS] = weights.parent
    for folder in channels.values():
        if ":" in str(folder) or "$" in str(folder):
            raise ConfigError(f"{folder}: Docker's compose takes no path with ':' or '$' in it. Use another folder.")
    return {
        "base_job_name": name,
        "training_image": image,
        "compute": {"instance_type": "local_cpu", "instance_count": 1},
        "hyperparameters": hyperparameters(config, f"{DATA}/{WEIGHTS}/{weights.name}" if weights else None),
        "input_data_config": [{"channel_name": name, "data_source": str(path)} for name, path in channels.items()],
        "environment": {
            "ARTCLF_CHECKPOINTS": f"{DATA}/{CHECKPOINTS}",
            "ARTCLF_IMAGE_DIGEST": image_digest,
            "TF_CPP_MIN_LOG_LEVEL": "2",
        },
        "local_container_root": str(place / "root"),
    }


def call_sdk(arguments: dict[str, Any]) -> None:
    """Runs a container to its end. Raises RuntimeError if its exit code is not 0."""
    # By name: the package is installed for this backend only, and says nothing of its types.
    trainer = importlib.import_module("sagemaker.train.model_trainer")
    inputs = [trainer.InputData(**channel) for channel in arguments["input_data_config"]]
    objects = {"compute": trainer.Compute(**arguments["compute"]), "input_data_config": inputs}
    trainer.ModelTrainer(training_mode=trainer.Mode.LOCAL_CONTAINER, **(arguments | objects)).train(wait=True)


def shut_off(defaults: Path) -> None:
    """Takes from this process all that could lead the SDK off this machine: keys, regions and telemetry.

    Args:
        defaults: is written, and stands for the user's and the machine's SDK defaults.
    """
    for name in [name for name in os.environ if name.startswith(("AWS_", "SAGEMAKER_"))]:
        del os.environ[name]
    write_json(
        defaults,
        {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}},
    )
    os.environ |= {
        "AWS_DEFAULT_REGION": "us-east-1",  # the SDK makes clients that ask for one, and never calls them
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "SAGEMAKER_VALIDATE_ROLE": "false",
        "SAGEMAKER_ADMIN_CONFIG_OVERRIDE": str(defaults),
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(defaults),
    }


# -- one job -------------------------------------------------------------------------------------


class Containers:
    """What the SDK's compose starts for one run, found again by a name that follows from the run's place."""

    def __init__(self, run: RunDir) -> None:
        self.project = f"artclf-{hashlib.sha256(os.fsencode(run.path)).hexdigest()[:16]}"

    def signal(self, name: str) -> bool:
        """Sends a signal to the first process of each, and says whether there was one."""
        running = self._ids()
        return bool(running) and docker("kill", "--signal", name, *running).returncode == 0

    def stop(self) -> None:
        """Lets those that run save and end."""
        if running := self._ids():
            docker("stop", "-t", str(int(GRACE_S)), *running)

    def ended(self) -> tuple[int, bool] | None:
        """Returns the exit code of the container, and whether it lacked memory; None if there is no container."""
        for found in self._ids("--all"):
            told = docker("inspect", "--format", "{{.State.ExitCode}} {{.State.OOMKilled}}", found).stdout.split()
            if len(told) == 2:
                return int(told[0]), told[1] == "true"
        return None

    def remove(self) -> None:
        """Removes them all, those that run too."""
        if found := self._ids("--all"):
            docker("rm", "--force", "--volumes", *found)

    def _ids(self, *options: str) -> list[str]:
        return docker("ps", "--quiet", *options, "--filter", f"label={PROJECT_LABEL}={self.project}").stdout.split()


class Job:
    """One attempt at a run; the caller holds its directory."""

    def __init__(self, run: RunDir, name: str, image: str, signals: Signals) -> None:
        self._run, self._name, self._image, self._signals = run, name, image, signals
        self._place = run.path / FOLDER
        self._inside = RunDir(self._place / CHECKPOINTS)
        self._containers = Containers(run)
        self._ended = threading.Event()
        self._sent = 0
        self._deadline: float | None = None
        self._is_late = False
        self._shown: dict[str, tuple[int, int]] = {}
        self._before: RunStatus | None = None
        self._is_taken = False
        self._here = {f"{DATA}/{CHECKPOINTS}": str(run.path)}

    def run(self) -> int:
        """Trains to the end or an interruption, leaves a verdict, and returns the exit code."""
        try:
            self._settle()
            arguments = self._prepare()
            self._signals.check()
            problem = self._train(arguments)
            ended = self._containers.ended()
            self._containers.remove()
            return self._take(ended, problem)
        except ArtclfError as error:
            self._leave_verdict(error)
            raise
        except OSError as error:
            refusal = storage_error("use", error.filename or self._run.path, error)
            self._leave_verdict(refusal)
            raise refusal from error
        finally:
            self._containers.remove()
            if self._is_taken:  # else commits are still in it, and the next job takes them
                self._clear()

    def _settle(self) -> None:
        """Ends what a job left here that was killed, and takes its commits."""
        self._containers.stop()
        self._containers.remove()
        self._take_commits()
        self._clear()

    def _prepare(self) -> dict[str, Any]:
        """Makes the job's folder and returns what the SDK is told.

        Raises:
            ConfigError: if the run, its data or its weights cannot be used.
        """
        config, job = self._run.read_config(), self._run.read_job() or {}
        dataset = open_dataset(job["dataset"])
        dataset.fetch_all()  # the container has no way to a bucket
        if dataset.digest != job["data_digest"]:
            raise ResumeError(f"{dataset.folder}: the data set changed since this run began. Put the old one back.")
        if hours := job.get("max_hours"):
            self._deadline = time.monotonic() + hours * 3600
        self._before = self._run.known_status()
        make_folder(self._place)
        self._place.chmod(0o700)  # what is open to the container's user below it is open to nobody else
        weights = self._copy_weights(config.model.weights)
        if weights is not None:
            self._here[f"{DATA}/{WEIGHTS}/{weights.name}"] = config.model.weights
        self._copy_run()
        for folder in ("model", f"{HOST}/output/data", *(f"{HOST}/input/data/{name}" for name in CHANNELS)):
            make_folder(self._place / "root" / folder)
        _open_to_all(self._place / "root")
        digest = docker("image", "inspect", "--format", "{{.Id}}", self._image).stdout.strip()
        return trainer_arguments(self._name, self._image, digest, self._place, dataset.folder, config, weights)

    def _copy_weights(self, weights: str) -> Path | None:
        if weights in ("none", "imagenet"):
            return None
        source = local_file(weights)
        make_folder(self._place / WEIGHTS)
        copy = self._place / WEIGHTS / f"weights{''.join(source.suffixes)}"  # Keras goes by the name's end
        try:
            shutil.copyfile(source, copy)
        except OSError as error:
            raise ConfigError(f"model.weights: {weights}: cannot be read: {error.strerror}.") from error
        _open_to_all(copy.parent)
        return copy

    def _copy_run(self) -> None:
        """Gives the container what it needs to go on; it takes its name once it is whole."""
        new = self._place / "new"
        make_folder(new)
        for path in (self._run.status, self._run.metrics, self._run.log):
            if path.is_file():
                shutil.copyfile(path, new / path.name)
        if self._run.checkpoints.is_dir():
            shutil.copytree(self._run.checkpoints, new / self._run.checkpoints.name)
        _open_to_all(new)
        new.rename(self._inside.path)

    def _train(self, arguments: dict[str, Any]) -> str:
        """Runs the container to its end and returns what the SDK had to say against it."""
        shut_off(self._place / "defaults.json")
        os.environ["COMPOSE_PROJECT_NAME"] = self._containers.project
        _make_network()
        self._is_taken = False
        companion = threading.Thread(target=self._accompany, name="companion", daemon=True)
        companion.start()
        try:
            call_sdk(arguments)
        except Exception as error:
            return " ".join(str(error).split())[:400] or type(error).__name__
        finally:
            self._ended.set()
            companion.join()
        return ""

    # -- while it trains -------------------------------------------------------------------------

    def _accompany(self) -> None:
        while not self._ended.wait(LOOK_S):
            with contextlib.suppress(ArtclfError, OSError):  # training goes on; the next look tries again
                self._end_in_time()
                self._pass_signals_on()
                self._show()

    def _end_in_time(self) -> None:
        """Lets the run save and end at its deadline, and ends it by force if it has not after the grace."""
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        if self._is_late:  # it hangs where no signal is heard
            self._containers.signal("KILL")
            return
        self._is_late = True
        self._deadline += GRACE_S
        if not self._signals.heard:  # a second one would end it at once, unsaved
            self._signals.heard.append("its time limit")

    def _pass_signals_on(self) -> None:
        # The first process of a container hears only what it has a handler for: that is there before job.json.
        if self._sent < len(self._signals.heard) and self._inside.job.exists() and self._containers.signal("TERM"):
            self._sent += 1

    def _show(self) -> None:
        """Puts what tells of the progress into the run directory."""
        inside = self._inside
        status = inside.known_status()
        for path in (inside.metrics, inside.progress, inside.log, inside.environment):
            self._bring(path)
        if status is not None and status.state == "running":  # a verdict comes when all that it tells of is there
            self._bring(inside.status)

    def _bring(self, path: Path) -> None:
        try:
            found = path.lstat()
        except FileNotFoundError:
            return
        fingerprint = (found.st_mtime_ns, found.st_ino)
        if self._shown.get(path.name) != fingerprint:
            LocalStorage(self._run.path).write(path.name, _read_plain(path))
            self._shown[path.name] = fingerprint

    # -- when it has ended -----------------------------------------------------------------------

    def _take(self, ended: tuple[int, bool] | None, problem: str) -> int:
        """Puts what the container left into the run directory, the verdict last, and returns the exit code."""
        self._take_commits()
        if ended is not None and ended[0] == 0:
            if problem:
                raise BackendError(f"the container ended well, but the SDK did not: {problem}")
            archive = self._place / "root" / "compressed_artifacts" / "model.tar.gz"
            take_model(archive, self._place / "unpacked", self._run)
            return 0
        with contextlib.suppress(ArtclfError, OSError):
            self._show()
        if ended is None:
            raise BackendError(f"no container was started: {problem}")
        code, lacked_memory = ended
        status = self._inside.known_status()
        if status is not None and status.state != "running" and status != self._before:
            self._run.write_status(replace(status, reason=self._as_here(status.reason)))
            return code
        if self._signals.heard and code in (Interrupted.exit_code, 128 + signal.SIGKILL, 128 + signal.SIGTERM):
            raise Interrupted(f"stopped by {self._signals.heard[0]}")
        raise BackendError(self._failure() or _how_it_ended(code, lacked_memory))

    def _take_commits(self) -> None:
        source, target = self._inside.checkpoints, self._run.checkpoints
        # Another backend may have gone on with the run since a job was killed here.
        if _is_plain(source) and _newest_commit(source) >= (_newest_commit(target) or "gen-"):
            with atomic_folder(target) as temporary:
                shutil.copytree(source, temporary, dirs_exist_ok=True, copy_function=shutil.copyfile)
        self._is_taken = True

    def _failure(self) -> str:
        """Returns the text of SageMaker's failure file."""
        try:
            told = _read_plain(self._place / "root" / HOST / "output" / "failure")
        except (OSError, StorageError):
            return ""
        return self._as_here(told[:4096].decode(errors="replace").strip())

    def _as_here(self, text: str) -> str:
        """Returns a text of the container with the places of its files here."""
        for inside, here in self._here.items():
            text = text.replace(inside, here)
        return text

    def _leave_verdict(self, error: ArtclfError) -> None:
        with contextlib.suppress(StorageError):  # what ended the job counts, and its log tells it
            self._run.give_verdict("interrupted" if isinstance(error, Interrupted) else "failed", str(error))

    def _clear(self) -> None:
        try:
            shutil.rmtree(self._place)
        except FileNotFoundError:
            pass
        except OSError:  # the container's user made folders there that only he and root may empty
            mounted = ["--volume", f"{self._run.path}:/run-directory", "--user", "0", "--network", "none"]
            remove = ["--entrypoint", "rm", self._image, "-rf", f"/run-directory/{FOLDER}"]
            docker("run", "--rm", *mounted, *remove)


class Signals:
    """The stop signals that reached this process."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @classmethod
    def caught(cls) -> Signals:
        """Returns those that come from now on."""
        signals = cls()
        catch_stop_signals(signals._hear)
        return signals

    def check(self) -> None:
        """Raises Interrupted if there was one."""
        if self.heard:
            raise Interrupted(f"stopped by {self.heard[0]} before the run began. Start again.")

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard.append(signal.Signals(number).name)


def _make_network() -> None:
    """Makes the one network that all local jobs of the SDK share, if it is not there: two compose that make it at
    once would each make one, and then none could use either."""
    with turn(cache_folder() / f".{NETWORK}.lock"):
        if docker("network", "inspect", NETWORK).returncode:
            label = f"com.docker.compose.network={NETWORK}"  # compose refuses one that it takes for somebody else's
            made = docker("network", "create", "--label", label, NETWORK)
            if made.returncode:
                raise BackendError(f"Docker cannot make the network {NETWORK}: {' '.join(made.stderr.split())[:300]}")


def _how_it_ended(code: int, lacked_memory: bool) -> str:
    if lacked_memory:
        return "the container was killed: it took more memory than Docker gives"
    if code - 128 in set(signal.Signals):
        return f"the container was killed by {signal.Signals(code - 128).name}"
    return f"the container ended with exit code {code} and no verdict"


# -- files that a container made -----------------------------------------------------------------


def _read_plain(path: Path) -> bytes:
    """Returns the content of a regular file; a link is not followed. Raises StorageError if it is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StorageError(f"{path}: expected a regular file, found something else.")
        return file.read()


def _is_plain(folder: Path) -> bool:
    """Says whether there is such a folder, and only folders and regular files are below it."""
    paths = [folder, *folder.rglob("*")] if folder.is_dir() else []
    return bool(paths) and {stat.S_IFMT(path.lstat().st_mode) for path in paths} <= {stat.S_IFREG, stat.S_IFDIR}


def _newest_commit(checkpoints: Path) -> str:
    return max((path.name for path in checkpoints.glob("gen-*")), default="")


def _open_to_all(folder: Path) -> None:
    """Lets the container's user, whoever that is, read and change all below a folder."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)


def main(argv: list[str]) -> int:
    """Runs one job."""
    signals = Signals.caught()
    parser = argparse.ArgumentParser(prog="python -m jobs.backends.sagemaker_local", description="Run one job.")
    parser.add_argument("--run-dir", type=local_path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--image", required=True)
    arguments = parser.parse_args(argv)
    run = RunDir(arguments.run_dir)
    with run.locked():
        return Job(run, arguments.name, arguments.image, signals).run()


if __name__ == "__main__":
    run_command(main)
