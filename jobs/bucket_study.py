"""A study that is kept in a bucket, seen through a copy on this machine that every look brings up to date.

Nothing but the bucket holds its state: the copy (``studies/s3/BUCKET/…``) may be deleted at any time, and any
laptop can look, go on, stop or report. What two submitters could race for is written by conditional puts.

    s3://BUCKET/PREFIX/<study>/          study.json jobs/ runs/ results.csv report.html …, as on a disk; stop.json
    s3://BUCKET/PREFIX/.shared/datasets/<digest>-<manifest>/    prepared data sets, by content
    s3://BUCKET/PREFIX/.shared/weights/<sha256>/     files of weights, by content
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from artclf.cache import local_file
from artclf.config import TrainConfig, weights_identity
from artclf.errors import ArtclfError, ConfigError, StorageError
from artclf.locks import turn
from artclf.records import MANIFEST, Dataset
from artclf.rundir import RunDir, read_json, write_json
from artclf.s3 import DamagedObject, S3Storage
from artclf.storage import MARKERS, LocalStorage, check_key, is_in_bucket
from jobs.cells import duration
from jobs.grid import Trial
from jobs.spec import JobHandle
from jobs.study import Study

COPIES = Path("studies/s3")
"""Where copies of studies in buckets lie, below the folder that commands run from."""
AT_ONCE = 16
TOLD_EVERY_S = 10.0
_STOP = "stop.json"
_NOT_COPIED = ("checkpoint", "tensorboard", "model.keras", "lease.json")
"""Of a run: too large for a look, or no business of anybody who looks."""
LONGEST_PART = 200  # bytes of a file's name: a temporary one beside it must fit into 255 too


class BucketStudy(Study):
    """One study below an s3:// prefix.

    Attributes:
        shared: what all studies of that prefix share: data sets and weights.
    """

    storage: S3Storage

    def __init__(self, root: str, name: str, account: str | None = None, region: str | None = None) -> None:
        """Opens a study.

        Args:
            root: the s3:// prefix that studies lie below.
            name: the study's.
            account: that must own the bucket.
            region: that its jobs run in.
        """
        storage = S3Storage(root, account=account, region=region)
        self._region = region
        super().__init__(COPIES / storage.bucket / storage.prefix, name)
        self.shared = storage.below(".shared")
        self._bucket = self.storage = storage.below(name)
        self._copy = Copy(self._bucket, self.path)

    @property
    def uri(self) -> str:
        return self._bucket.uri

    def check(self) -> None:
        """Proves that the bucket is there, in the jobs' region, and keeps its promises.

        Raises:
            ConfigError: if it is not, or does not.
            StorageError: if it cannot be asked.
        """
        found = self._bucket.region()
        if self._region and found and found != self._region:
            raise ConfigError(
                f"{self.uri}: the bucket is in {found}, the jobs would run in {self._region}, "
                f"which SageMaker refuses. Use a bucket of {self._region}, or mend region in cloud.yaml."
            )
        self._bucket.check_conditional_puts()

    def refresh(self) -> None:
        self._copy.refresh()

    @property
    def problems(self) -> list[str]:
        return self._copy.problems

    def read(self) -> dict[str, Any] | None:
        if self._copy.lacks("study.json"):
            raise StorageError(f"{self.uri}/study.json: cannot be read: {'; '.join(self.problems)[:300]}")
        return super().read()

    def trial_ids(self) -> list[str]:
        keys = (key.split("/") for key in self._copy.versions)
        return sorted({parts[1] for parts in keys if parts[0] == "runs" and len(parts) >= 3})

    def _put_study(self, content: bytes) -> bool:
        version = self._copy.versions.get("study.json")
        is_done = (
            self._bucket.create("study.json", content)
            if version is None
            else self._bucket.replace("study.json", content, version) is not None
        )
        self.refresh()
        return is_done

    def is_complete(self, trial_id: str) -> bool:
        run = RunDir(Path("runs") / trial_id)
        left = [path.as_posix() for path in run.left_when_done()]
        if not all(key in self._copy.versions for key in left) and self._copy.may_be_newer(run.status.as_posix()):
            self.refresh()  # the verdict may have come after the listing, as the files that go before it
        return all(key in self._copy.versions for key in left)

    def fetch_model(self, trial_id: str) -> None:
        self._copy.fetch(f"runs/{trial_id}/{self.run(trial_id).model.name}")

    def run_in_bucket(self, trial_id: str) -> tuple[float, Callable[[], object]]:
        """Returns what a run takes in the bucket, in 10^6 bytes, and what removes it."""
        entries = list(self._bucket.entries(f"runs/{trial_id}"))

        def remove() -> None:
            for entry in entries:
                self._bucket.remove_listed(entry.key)

        return sum(entry.size_bytes for entry in entries) / 1e6, remove

    def publish(self, names: Iterable[str]) -> None:
        for name in names:
            path = self.path / name
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            for file in files:
                if file.is_file():
                    self._bucket.upload(file.relative_to(self.path).as_posix(), file)

    def stops_asked(self) -> str:
        return self._copy.versions.get(_STOP, "")

    def ask_to_stop(self, trials: Sequence[str] = ()) -> None:
        asked = {"token": secrets.token_hex(8), "trials": list(trials)}
        self._bucket.write(_STOP, json.dumps(asked).encode())

    def asked_of(self) -> frozenset[str]:
        try:
            asked = json.loads(self._bucket.read(_STOP))
            return frozenset(map(str, asked.get("trials", ())))
        except (FileNotFoundError, ValueError, AttributeError, TypeError, RecursionError):
            return frozenset()  # damaged: to stop all is what does no harm

    def begin_run(self, trial: Trial, dataset_path: str, data_digest: str, max_hours: float) -> None:
        weights = self._shared_weights(trial.config.model.weights)
        settings = TrainConfig.from_settings({**trial.config.flat(), "model.weights": weights})
        job = {"dataset": dataset_path, "data_digest": data_digest, "max_hours": max_hours}
        self._bucket.write(f"runs/{trial.trial_id}/job.json", (json.dumps(job, indent=2) + "\n").encode())
        key, content = f"runs/{trial.trial_id}/config.json", settings.to_json().encode()
        if self._bucket.create(key, content):
            return
        kept = self._read_settings(key)
        if kept is None:  # damaged, and we know what it must say
            self._bucket.write(key, content)
            return
        kept = TrainConfig.from_settings({**kept.flat(), "model.weights": trial.config.model.weights})
        if kept != trial.config and kept.canonical() != trial.config.canonical():
            raise StorageError(
                f"{self._bucket.uri}/{key}: holds the settings of another trial than {trial.label}. Somebody has "
                f"changed it: remove the folder runs/{trial.trial_id} there, and submit again."
            )

    def _read_settings(self, key: str) -> TrainConfig | None:
        try:
            content = json.loads(self._bucket.read(key))
            return TrainConfig.from_settings(content) if isinstance(content, dict) else None
        except (FileNotFoundError, ConfigError, DamagedObject, ValueError, RecursionError):
            return None

    def share_dataset(
        self, dataset: Dataset, say: Callable[[str], None], check: Callable[[], None] = lambda: None
    ) -> str:
        if is_in_bucket(dataset.place):
            return dataset.place
        # By manifest too: what is told of pictures, their files' names, is part of no digest.
        told = hashlib.sha256((dataset.folder / MANIFEST).read_bytes()).hexdigest()[:8]
        place = self.shared.below(f"datasets/{dataset.digest[:16]}-{told}")
        there = {entry.key: entry.size_bytes for entry in place.entries()}
        manifest = dataset.manifest
        files = {shard["name"]: shard["sha256"] for shard in manifest["shards"]}
        files |= {name: about["sha256"] for name, about in manifest.get("files", {}).items()}
        cut = {name for name in files if there.get(name) != (dataset.folder / name).stat().st_size}
        if MANIFEST in there and not cut:
            return place.uri
        missing = [name for name, sha256 in files.items() if name in cut or not place.holds(name, sha256)]
        say(f"putting the data set into the bucket: {len(missing)} of {len(files)} files, {place.uri}")
        _upload(place, {name: dataset.folder / name for name in missing}, say, check)
        place.create(MANIFEST, (dataset.folder / MANIFEST).read_bytes())
        return place.uri

    def _shared_weights(self, weights: str) -> str:
        if weights in ("none", "imagenet") or is_in_bucket(weights):
            return weights
        sha256 = weights_identity(weights).partition(":")[2]
        key = f"weights/{sha256[:16]}/{Path(weights).name}"
        if not self.shared.holds(key, sha256):
            self.shared.upload(key, local_file(weights))
        return f"{self.shared.uri}/{key}"

    def record_job(self, handle: JobHandle) -> None:
        super().record_job(handle)
        LocalStorage(self.path).write(f"jobs/{handle.name}.json", handle.to_json())

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Any number may submit at once: names of jobs are given once, and the service starts each name once."""
        yield

    def submitter(self) -> int | None:
        return None


def _upload(storage: S3Storage, files: dict[str, Path], say: Callable[[str], None], check: Callable[[], None]) -> None:
    """Puts files into a bucket, several at once, and says now and then how far that is."""
    sizes = {key: path.stat().st_size for key, path in files.items()}
    began = told = time.monotonic()
    done = 0
    with ThreadPoolExecutor(AT_ONCE // 2) as pool:
        putting = {pool.submit(storage.upload, key, path): key for key, path in files.items()}
        try:
            for put in as_completed(putting):
                put.result()
                check()
                done += sizes[putting[put]]
                now = time.monotonic()
                if now - told >= TOLD_EVERY_S:
                    told = now
                    left_s = (now - began) * (sum(sizes.values()) - done) / max(done, 1)
                    say(f"{done / 1e6:,.0f} of {sum(sizes.values()) / 1e6:,.0f} MB, {duration(left_s)} left")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what is under way ends first
            raise


class Copy:
    """What of a study in a bucket lies on this machine.

    Attributes:
        versions: of every object at the last look, copied or not, by key.
        problems: what could not be copied, in words.
    """

    def __init__(self, storage: S3Storage, folder: Path) -> None:
        self._storage, self._folder = storage, folder
        self._index = folder / ".copied.json"
        self.versions: dict[str, str] = {}
        self.problems: list[str] = []
        self._stamps: dict[str, str] = {}
        self._news: frozenset[str] = frozenset()

    def refresh(self) -> None:
        """Copies what is new or changed in the bucket, or was changed here, and removes what is no longer there."""
        with turn(self._folder / ".copy.lock"):
            here = self._here()  # before the listing: what another process puts into both meanwhile was not removed
            self.versions = {entry.key: entry.version for entry in self._storage.entries() if _is_plain(entry.key)}
            wanted = {key: version for key, version in self.versions.items() if _is_copied(key)}
            for key in here.keys() - wanted.keys():
                (self._folder / key).unlink(missing_ok=True)
            copied = self._copied()
            news = [
                key for key, version in wanted.items() if key not in here or copied.get(key) != [version, here[key]]
            ]
            self.problems = []
            with ThreadPoolExecutor(AT_ONCE) as pool:
                here |= dict(zip(news, pool.map(self._try, news), strict=True))
            self._stamps, self._news = here, frozenset(news)
            now = {key: [version, here[key]] for key, version in wanted.items() if here[key]}
            if now != copied:
                write_json(self._index, now)

    def lacks(self, key: str) -> bool:
        """Says whether an object was there at the last look and could not be copied."""
        return key in self.versions and not self._stamps.get(key)

    def may_be_newer(self, key: str) -> bool:
        """Says whether a file here may be newer than the listing of our last look: it was fetched after that, or by
        another process."""
        return key in self._news or _stamp(self._folder / key) != self._stamps.get(key, "")

    def _here(self) -> dict[str, str]:
        """Returns the copied files that are here, each with a word that changes when it is written to."""
        storage = LocalStorage(self._folder)
        return {key: _stamp(storage.path(key)) for key in storage.list() if _is_plain(key) and _is_copied(key)}

    def fetch(self, key: str) -> None:
        """Copies one object that ``refresh`` passes over. Raises StorageError if it cannot be had."""
        try:
            self._storage.download(key, self._folder / key)
        except FileNotFoundError as error:
            raise StorageError(f"{error}: expected it there, found nothing. Submit again to run it anew.") from error

    def _try(self, key: str) -> str:
        """Copies an object and returns its file's stamp; nothing if it cannot be had."""
        path = self._folder / key
        try:
            self._storage.download(key, path)
        except FileNotFoundError:
            return ""  # since the listing
        except (ConfigError, StorageError) as error:
            self.problems.append(str(error))
            return ""
        return _stamp(path)

    def _copied(self) -> dict[str, Any]:
        try:
            content = read_json(self._index)
        except ArtclfError:
            return {}
        return content if isinstance(content, dict) else {}


def _stamp(path: Path) -> str:
    try:
        about = path.stat()
    except FileNotFoundError:  # in this instant
        return ""
    return f"{about.st_mtime_ns} {about.st_size}"


def _is_plain(key: str) -> bool:
    """Says whether a key is of the form that artclf writes: others never become a path of this machine."""
    try:
        check_key(key)
    except ConfigError:
        return False
    return (
        key.isprintable()
        and len(key) < 512
        and not any(part.startswith(".") or len(part.encode()) > LONGEST_PART for part in key.split("/"))
    )


def _is_copied(key: str) -> bool:
    parts = key.split("/")
    if parts[0] == "runs":
        return len(parts) >= 3 and parts[2] not in _NOT_COPIED and not key.endswith(MARKERS)
    return key == "study.json" or (parts[0] == "jobs" and key.endswith(".json"))
