"""A run whose directory is in a bucket, worked on in a folder of this machine.

Before the trainer starts, what is in the bucket is brought here; while it runs, a thread brings back what it
leaves: each commit as it appears, its manifest last, then the metrics and the status that tell of it. At the
end everything, status.json last: who reads ``done`` there finds all the rest. Training never waits for the
network, and a network that is away delays the uploads only. Another thread renews the lease all the while,
however long an upload takes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from artclf.checkpoint import MANIFEST, LocalGenerations
from artclf.errors import ArtclfError, ConfigError, ResumeError
from artclf.rundir import RunDir
from artclf.s3 import DamagedObject, S3Storage
from artclf.storage import make_folder
from container.generations import BucketGenerations
from container.lease import LIFE_S, Lease, LeaseLost

log = logging.getLogger("artclf")

LOOK_S, LONGEST_PAUSE_S = 0.5, 60.0
"""So often the thread looks for something new; after a refusal the pause doubles up to the longest."""
RECORDS = ("metrics.jsonl", "status.json")
"""What tells how the run stands, in the order in which it is put: each only over what this machine read or wrote."""
SELDOM_S = 15.0
"""So often the log and the progress go back, which change all the time."""


class RemoteRun:
    """One run in a bucket, held by this machine.

    Args:
        storage: its prefix.
        folder: an empty folder of this machine to work in.
        holder: names this machine's job.
        lost: is called, once, if another machine takes the run over.
        check: is called now and then while another machine's lease is waited for; raises to end that.
        life_s: of the lease.
    """

    def __init__(
        self,
        storage: S3Storage,
        folder: Path,
        holder: str,
        lost: Callable[[], None] = lambda: None,
        check: Callable[[], None] = lambda: None,
        life_s: float = LIFE_S,
    ) -> None:
        self.run = RunDir(folder)
        self._storage, self._lost, self._life_s = storage, lost, life_s
        self._lease = Lease(storage, holder, life_s, check=check)
        self._generations = BucketGenerations(storage.below("checkpoint"))
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._versions: dict[str, str | None] = {}  # of RECORDS in the bucket, as we read or wrote them last
        self._committed = 0
        self._is_lost = False
        self._ended, self._let_go = threading.Event(), threading.Event()
        self._uploader = threading.Thread(target=self._work, name="uploader", daemon=True)
        self._keeper = threading.Thread(target=self._keep, name="lease keeper", daemon=True)

    def begin(self) -> RunDir:
        """Takes the run, brings what is needed to go on with it here, and starts to bring back what it leaves.

        Raises:
            ConfigError: if there is no run, or another machine is at work on it.
            ResumeError: if it has committed states, but none is sound.
            StorageError: if the bucket refuses.
        """
        self._storage.check_conditional_puts()
        try:
            files = {"config.json": self._storage.read("config.json"), "job.json": self._storage.read("job.json")}
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self._storage.uri}: expected a run with config.json and job.json; submit writes them ({error})."
            ) from error
        self._lease.take()
        self._keeper.start()
        try:
            self._fetch(files)
        except BaseException as error:
            try:
                if isinstance(error, ResumeError):
                    self.run.give_verdict("failed", str(error))
                    self._put_record("status.json", *_content(self.run.status))
            finally:  # also if the verdict could not be put
                self._release()
            raise
        self._uploader.start()
        return self.run

    def _fetch(self, files: dict[str, bytes]) -> None:
        make_folder(self.run.path)
        for name, content in files.items():
            (self.run.path / name).write_bytes(content)
        for name in RECORDS:
            self._versions[name] = self._storage.version(name)
        for name in (*RECORDS, "environment.json", "log.txt"):
            try:
                self._storage.download(name, self.run.path / name)
            except FileNotFoundError:
                continue
            except DamagedObject as error:  # the committed state is what the run goes on from
                log.warning("left out, the run goes on without it: %s", error)
        for path in self.run.path.iterdir():
            self._uploaded[path.name] = _fingerprint(path)
        newest, problems = self._generations.fetch_newest_sound(self.run.checkpoints)
        for problem in problems:
            log.warning("a committed state is damaged and marked, an older one is used: %s", problem)
        for number in self._generations.bad_numbers():  # so that its number is not given again
            make_folder(self.run.checkpoints / f"bad-gen-{number:06d}")
        self._committed = newest or 0

    def end(self) -> None:
        """Brings back all that is left, the status last, and lets the run go.

        Raises:
            LeaseLost: if another machine has taken it over; nothing is brought back then.
            StorageError: if the bucket refuses until the budget of its retries is used up.
        """
        try:
            self._ended.set()
            self._uploader.join()
            self._put_generation()
            for path in sorted(self.run.path.rglob("*")):
                key = path.relative_to(self.run.path).as_posix()
                if path.is_file() and _is_left(key):
                    self._lease.renew()  # before each: a machine that slept may have been followed by another
                    self._put_file(key, path)
            self._lease.renew()
            for name in RECORDS:
                self._put_record(name, *_content(self.run.path / name))
            self._release()
        finally:  # a lease of which we could not put the last files runs out by itself
            self._let_go.set()

    def _release(self) -> None:
        self._let_go.set()
        self._keeper.join()
        self._lease.release()

    def _keep(self) -> None:
        """Renews the lease until it is let go or lost."""
        while not self._let_go.wait(self._life_s / 3):
            try:
                self._lease.renew()
            except LeaseLost as error:
                self._lose(error)
                return
            except ArtclfError as error:  # as long as we cannot renew it nobody can take it over either, unless
                log.warning("the lease is not renewed yet: %s", error)  # the network is away from here alone

    def _lose(self, error: LeaseLost) -> None:
        log.error("%s", error)
        if not self._is_lost:
            self._is_lost = True
            self._lost()

    def _work(self) -> None:
        """Brings back what is new until the trainer has ended or the run was lost."""
        told, pause_s, problem = time.monotonic(), LOOK_S, ""
        while not self._ended.wait(pause_s) and not self._is_lost:
            try:
                self._put_what_is_new(is_time := time.monotonic() - told >= SELDOM_S)
                told = time.monotonic() if is_time else told
                pause_s, problem = LOOK_S, ""
            except LeaseLost as error:
                self._lose(error)
            except (ArtclfError, OSError) as error:  # training goes on; the next look tries again
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                if str(error) != problem:
                    problem = str(error)
                    log.warning("not brought to the bucket yet: %s", problem)

    def _put_what_is_new(self, also_seldom: bool) -> None:
        # Read before the commit is looked for: what they tell of is then committed here at the latest.
        kept = {name: _content(self.run.path / name) for name in RECORDS}
        has_committed = self._put_generation()
        for name, (content, fingerprint) in kept.items():
            if name != "status.json" or not _is_done(content):  # its model and scores come first: end() puts it last
                self._put_record(name, content, fingerprint)
        self._put_file("environment.json", self.run.environment)
        if also_seldom:
            self._put_file("progress.json", self.run.progress)
        if also_seldom or has_committed:  # the log tells of each epoch that is committed, whoever goes on with it
            self._put_file("log.txt", self.run.log)

    def _put_generation(self) -> bool:
        """Commits the newest generation to the bucket if it is not there, and says whether; its files are linked
        aside before, so that the trainer may remove it meanwhile."""
        numbers = [number for number in LocalGenerations(self.run.checkpoints).numbers() if number > self._committed]
        if not numbers:
            return False
        source = self.run.checkpoints / f"gen-{numbers[-1]:06d}"
        aside = self.run.path.with_name(f"{self.run.path.name}-upload")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            for file in source.iterdir():
                os.link(file, aside / file.name)
        except FileNotFoundError:  # removed in this moment: there is a newer one
            return False
        if is_whole := (aside / MANIFEST).exists():
            self._generations.put(numbers[-1], aside, self._lease.renew)
            self._committed = numbers[-1]
        shutil.rmtree(aside)
        return is_whole

    def _put_record(self, name: str, content: bytes, fingerprint: tuple[int, int]) -> None:
        """Puts a file that tells how the run stands, as ``_content`` found it, unless it was put already.

        Raises:
            LeaseLost: if another machine has written it since we read or wrote it last.
        """
        if not content or self._uploaded.get(name) == fingerprint:
            return
        version = self._versions.get(name)
        put = (
            self._storage.create_versioned(name, content)
            if version is None
            else self._storage.replace(name, content, version)
        )
        if put is None:
            raise LeaseLost(f"{self._storage.uri}/{name}: another machine has written it; nothing more is written.")
        self._versions[name], self._uploaded[name] = put, fingerprint

    def _put_file(self, key: str, path: Path) -> None:
        if not path.is_file():
            return
        fingerprint = _fingerprint(path)
        if self._uploaded.get(key) != fingerprint:
            self._storage.upload(key, path)
            self._uploaded[key] = fingerprint


def _is_done(status: bytes) -> bool:
    """Says whether a status promises all that a finished run leaves."""
    with contextlib.suppress(ValueError, AttributeError):
        return json.loads(status).get("state") == "done"  # type: ignore[no-any-return]
    return False


def _is_left(key: str) -> bool:
    """Says whether a file is one that a run leaves for others, apart from those that are put in their own order."""
    parts = key.split("/")
    return parts[0] not in (*RECORDS, "checkpoint", "progress.json") and not any(part.startswith(".") for part in parts)


def _fingerprint(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_ino


def _content(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Returns a file's content, empty if there is no file, with what tells whether it changed since."""
    try:
        fingerprint = _fingerprint(path)
        return path.read_bytes(), fingerprint
    except FileNotFoundError:
        return b"", (0, 0)
