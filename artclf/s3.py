"""Objects below an s3:// prefix, as artclf.storage.Storage; boto3 is imported when one is opened.

Facts this stands on (Amazon S3 API reference and User Guide): a put replaces an object in one step and is seen
by every read and listing after it; ``If-None-Match: *`` lets one of any number of writers through (412 for the
others, 409 for "try again"); ``If-Match`` is a compare-and-swap; nothing is atomic over two objects.

Every object is written with the SHA-256 of its content and a token of its writer as user metadata, so a reader
can check any object on any server, and a writer whose answer was lost can tell its own object from another's.
What fails in passing is tried again until a budget of time is used up, not a count of tries.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import math
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from artclf import aws
from artclf.errors import ArtclfError, ConfigError, StorageError, printable
from artclf.storage import atomic_file, check_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

RECORD_BYTES = 16 * 2**20
"""The largest object that ``read`` takes into memory; larger files are downloaded."""
PART_BYTES = 64 * 2**20
MOST_PARTS = 10_000  # of one multipart upload (S3 User Guide, "multipart upload limits")
MOST_MISMATCHES = 4
"""So often content that is not as it was written is asked for again: after that it is no passing fault."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")  # S3 User Guide, "General purpose bucket naming rules"
_MD5 = re.compile(r"[0-9a-f]{32}")
_PASSING = (
    "OperationAborted",
    "ConditionalRequestConflict",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
    "IncompleteBody",
    "InvalidDigest",
)
"""Refusals of S3 that pass: another writer was quicker, or the body was damaged on its way."""


class DamagedObject(StorageError):
    """An object is not as it was written, however often it is asked for."""


class _Missing(Exception):
    """There is no such object. No OSError, which would be taken for one of the disk."""


@dataclass(frozen=True)
class Entry:
    """One object of a listing: its key below the prefix, its size, and a word that changes with its content."""

    key: str
    size_bytes: int
    version: str


@dataclass(frozen=True)
class UnfinishedUpload:
    """A multipart upload that nobody finished: invisible in listings, and billed."""

    key: str
    upload_id: str
    begun: str


def split_uri(uri: str) -> tuple[str, str]:
    """Returns the bucket and prefix of an s3:// URI, the prefix without slashes around it.

    Raises:
        ConfigError: if it is no such URI, or holds empty, ``.`` or ``..`` parts.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.removesuffix("/")
    if scheme != "s3" or not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"{uri}: expected s3://BUCKET/PREFIX, with a bucket of small letters, digits, '-' and '.'.")
    if prefix:
        try:
            check_key(prefix)
        except ConfigError as error:
            raise ConfigError(f"{uri}: expected a prefix without empty, '.' or '..' parts.") from error
    return bucket, prefix


class S3Storage:
    """A prefix of a bucket. Safe to share between threads.

    Args:
        uri: ``s3://bucket/prefix``.
        account: the account that must own the bucket; every call says so, and another's bucket is refused.
        region: of the bucket, if it is known; else this machine's, and S3 leads to the bucket's.
        budget_s: for how long one call keeps trying from its first failure on, or from its last progress.
        sleep, clock: tests pass their own.
        part_bytes: longer files are sent in parts of that size.

    Raises:
        ConfigError: if the URI is wrong or this machine has no credentials for AWS.
    """

    def __init__(
        self,
        uri: str,
        *,
        account: str | None = None,
        region: str | None = None,
        budget_s: float = 900.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self.bucket, self.prefix = split_uri(uri)
        self.uri = f"s3://{self.bucket}/{self.prefix}".removesuffix("/")
        self.account, self.budget_s, self.part_bytes = account, budget_s, part_bytes
        self._sleep, self._clock = sleep, clock
        self._connection = _Connection(region)

    def below(self, key: str) -> S3Storage:
        """Returns the storage of a prefix below this one, over the same connection."""
        storage = S3Storage.__new__(S3Storage)
        storage.__dict__.update(self.__dict__)
        storage.prefix = self._key(key)
        storage.uri = f"s3://{storage.bucket}/{storage.prefix}"
        return storage

    # -- small objects, whole --------------------------------------------------------------------

    def read(self, key: str) -> bytes:
        """Returns the content of an object of at most RECORD_BYTES, checked.

        Raises:
            FileNotFoundError: if there is none.
            StorageError: if it cannot be read, is larger, or is not as it was written.
        """
        return self.read_versioned(key)[0]

    def read_versioned(self, key: str) -> tuple[bytes, str]:
        """Returns the content, as ``read`` does, and its version for ``replace``."""
        patience = self._patience("read", key)
        while True:
            try:
                answer = self._client.get_object(**self._at(key))
                if answer["ContentLength"] > RECORD_BYTES:
                    answer["Body"].close()
                    raise StorageError(
                        f"{self._shown(key)}: expected a record of at most {RECORD_BYTES:,} bytes, "
                        f"found {answer['ContentLength']:,}."
                    )
                content = answer["Body"].read()
                problem = _mismatch(answer, len(content), hashlib.sha256(content), hashlib.md5(content))
                if problem is None:
                    self._connection.is_proven = True
                    return content, answer["ETag"]
                patience.mismatched(problem)
            except Exception as error:
                if aws.status(error) == 404 and aws.code(error) != "NoSuchBucket":
                    raise FileNotFoundError(self._shown(key)) from error
                patience.failed(error)

    def write(self, key: str, content: bytes) -> None:
        """Replaces the content in one step."""
        self._put(key, content, {})

    def create(self, key: str, content: bytes) -> bool:
        """Writes the content if the key is free, and says whether it was: true for one of any number of writers."""
        return self.create_versioned(key, content) is not None

    def create_versioned(self, key: str, content: bytes) -> str | None:
        """Does what ``create`` does and returns the version for ``replace``; None if the key was not free."""
        return self._put(key, content, {"IfNoneMatch": "*"})

    def replace(self, key: str, content: bytes, version: str) -> str | None:
        """Writes the content if the object still is of that version; returns the new version, or None if not."""
        return self._put(key, content, {"IfMatch": version})

    def _put(self, key: str, content: bytes, condition: dict[str, str]) -> str | None:
        """Puts an object and returns its version; None if the condition did not hold."""
        writer = secrets.token_hex(12)
        sha256 = hashlib.sha256(content)
        call = {**self._at(key), "Body": content, "Metadata": _metadata(sha256.hexdigest(), writer), **condition}
        call["ChecksumSHA256"] = _checksum(sha256.digest())
        patience = self._patience("write", key)
        while True:
            try:
                answer = self._client.put_object(**call)
                problem = _wrong_etag(answer, hashlib.md5(content))
                if problem is None:
                    self._connection.is_proven = True
                    return answer["ETag"]
                # Damaged on the way, on a server that does not check: what is there now is this damaged content.
                call["IfMatch"] = answer["ETag"]
                call.pop("IfNoneMatch", None)
                patience.mismatched(problem)
            except Exception as error:
                is_refused = aws.status(error) == 412 or (aws.status(error) == 404 and "IfMatch" in call)
                if not is_refused or aws.code(error) == "NoSuchBucket":
                    patience.failed(error)
                    continue
                if not condition and "IfMatch" not in call:
                    patience.outlast(error)
                    continue
                if not patience.was_needed:
                    return None
                # An answer may have been lost: then the object that is in the way is the one we put there.
                head = self._head(key)
                if head is None or head["Metadata"].get("writer") != writer:
                    if condition or head is None:
                        return None
                    call.pop("IfMatch", None)  # an unconditional write, and somebody wrote after our damaged one
                    continue
                if _wrong_etag(head, hashlib.md5(content)) is None:
                    return str(head["ETag"])
                call["IfMatch"] = head["ETag"]
                call.pop("IfNoneMatch", None)

    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""
        check_key(key)
        self.remove_listed(key)

    def remove_listed(self, key: str) -> None:
        """Removes an object by its key as ``entries`` gave it, of whatever form: it becomes no path here."""
        whole = f"{self.prefix}/{key}" if self.prefix else key
        self._try("remove", key, lambda: self._client.delete_object(**self._owner(), Key=whole))

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yields the keys below a prefix (a whole folder name or nothing), in order.

        Raises:
            StorageError: if a page cannot be had: never is a short list taken for a whole one.
        """
        return (entry.key for entry in self.entries(prefix))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Yields what ``list`` does with sizes and versions. Keys that others made may be of any form: check_key."""
        start = self._key(prefix) if prefix else self.prefix
        start = f"{start}/" if start else ""
        place: dict[str, str] = {}
        while True:
            page: Any = self._try("list", prefix, lambda place=place: self._page(start, place))  # type: ignore[misc]
            if "Name" not in page and "KeyCount" not in page:
                raise StorageError(f"{self._shown(prefix)}: expected a listing, the server answered something else.")
            for item in page.get("Contents", ()):
                key = item["Key"][len(self.prefix) + 1 :] if self.prefix else item["Key"]
                yield Entry(key, item["Size"], item["ETag"])
            if not page.get("IsTruncated"):
                return
            if page.get("NextContinuationToken") in (None, "", place.get("ContinuationToken")):
                raise StorageError(f"{self._shown(prefix)}: the server cut the listing short.")
            place = {"ContinuationToken": page["NextContinuationToken"]}

    def _page(self, start: str, place: dict[str, str]) -> Any:
        page: Any = self._client.list_objects_v2(**self._owner(), Prefix=start, **place)  # type: ignore[arg-type]
        for item in page.get("Contents", ()):
            _with(item, "Key", "Size", "ETag")
        return page

    # -- files of any size -----------------------------------------------------------------------

    def version(self, key: str) -> str | None:
        """Returns the version of an object; None if there is none."""
        head = self._head(key)
        return None if head is None else str(head["ETag"])

    def holds(self, key: str, sha256: str) -> bool:
        """Says whether an object is there that was written with this content."""
        head = self._head(key)
        return head is not None and head["Metadata"].get("sha256") == sha256

    def upload(self, key: str, path: Path) -> None:
        """Puts a file in one step, whatever its size; of one that grows meanwhile, what it held when this began.

        Raises:
            FileNotFoundError: if there is no such file.
            StorageError: if the bucket refuses.
        """
        size = path.stat().st_size
        if size <= self.part_bytes:
            self.write(key, _section(path, 0, size))
        else:
            self._upload_parts(key, path, size)

    def _upload_parts(self, key: str, path: Path, size: int) -> None:
        part_bytes = max(self.part_bytes, -(-size // MOST_PARTS))
        sections = [(start, min(part_bytes, size - start)) for start in range(0, size, part_bytes)]
        whole = hashlib.sha256()
        for section in sections:
            whole.update(_section(path, *section))
        sha256 = whole.hexdigest()
        patience = self._patience("write", key)
        while True:
            upload = self._try(
                "write",
                key,
                lambda: self._client.create_multipart_upload(
                    **self._at(key), Metadata=_metadata(sha256, secrets.token_hex(12)), ChecksumAlgorithm="SHA256"
                ),
            )["UploadId"]
            try:
                parts = [
                    self._upload_part(key, upload, number, _section(path, *section))
                    for number, section in enumerate(sections, 1)
                ]
                self._client.complete_multipart_upload(
                    **self._at(key),
                    UploadId=upload,
                    MultipartUpload={"Parts": parts},  # type: ignore[typeddict-item]
                )
                return
            except (ArtclfError, OSError) as error:
                self._abort(key, upload)
                raise error
            except Exception as error:
                is_there = self.holds(key, sha256)  # only the answer was lost, or it was there before
                self._abort(key, upload)
                if is_there:
                    return
                patience.failed(error)

    def _upload_part(self, key: str, upload: str, number: int, content: bytes) -> dict[str, Any]:
        checksum = _checksum(hashlib.sha256(content).digest())
        patience = self._patience("write", key)
        while True:
            try:
                answer = self._client.upload_part(
                    **self._at(key), UploadId=upload, PartNumber=number, Body=content, ChecksumSHA256=checksum
                )
                problem = _wrong_etag(answer, hashlib.md5(content))
                if problem is None:
                    return {"ETag": answer["ETag"], "PartNumber": number, "ChecksumSHA256": checksum}
                patience.mismatched(problem)
            except Exception as error:
                patience.failed(error)

    def download(self, key: str, path: Path, sha256: str | None = None) -> None:
        """Gets an object into a file, checked before the file takes its name. Goes on where an answer was cut.

        Args:
            sha256: of the content that is expected, if it is known from elsewhere.

        Raises:
            FileNotFoundError: if there is no such object.
            StorageError: if it cannot be had, is not as it was written, or not what was expected.
        """
        patience = self._patience("read", key)
        try:
            with atomic_file(path) as temporary:
                while (problem := self._fetch_checked(key, temporary, sha256, patience)) is not None:
                    patience.mismatched(problem)
        except _Missing as error:
            raise FileNotFoundError(self._shown(key)) from error
        self._connection.is_proven = True

    def _fetch_checked(self, key: str, path: Path, sha256: str | None, patience: _Patience) -> str | None:
        """Writes an object's bytes to a file, and returns in what they are not as they should be, or None."""
        answer = self._fetch(key, path, patience)
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256")
            file.seek(0)
            md5 = hashlib.file_digest(file, "md5")
        problem = _mismatch(answer, path.stat().st_size, found, md5)
        if problem is None and sha256 is not None and found.hexdigest() != sha256:
            problem = f"expected the SHA-256 {sha256[:12]}, found {found.hexdigest()[:12]}"
        return problem

    def _fetch(self, key: str, path: Path, patience: _Patience) -> dict[str, Any]:
        """Writes an object's bytes to a file, over as many connections as it takes, and returns its description."""
        first: dict[str, Any] = {}
        with open(path, "wb") as file:
            while True:
                try:
                    place = {"Range": f"bytes={file.tell()}-", "IfMatch": first["ETag"]} if file.tell() else {}
                    answer: Any = self._client.get_object(**self._at(key), **place)
                    first = first or _with(answer, "ETag", "ContentLength")
                    for chunk in answer["Body"].iter_chunks(2**20):
                        file.write(chunk)
                        patience.progressed()
                    return first
                except OSError as error:
                    if not _is_passing(error):
                        raise
                    patience.failed(error)
                except Exception as error:
                    if aws.status(error) == 404 and aws.code(error) != "NoSuchBucket":
                        raise _Missing from error
                    is_replaced = aws.status(error) in (412, 416)
                    if is_replaced or _is_damage(error):  # from the start
                        file.seek(0)
                        file.truncate()
                        first = {}
                    if aws.status(error) == 416:  # all that there is was there, and less than was said
                        patience.mismatched("cut short")
                    elif is_replaced:
                        patience.outlast(error)
                    else:
                        patience.failed(error)

    # -- the server itself -----------------------------------------------------------------------

    def check_conditional_puts(self) -> None:
        """Proves that the server keeps the promises that records of two writers depend on.

        Raises:
            ConfigError: if it does not, as some look-alikes of S3.
        """
        key = f".artclf-probe-{secrets.token_hex(6)}"
        try:
            broken = self._broken_promise(key)
        except ArtclfError:
            with contextlib.suppress(ArtclfError):  # the first refusal is the one that says what is wrong
                self.delete(key)
            raise
        self.delete(key)
        if broken:
            raise ConfigError(
                f"{self.uri}: this server {broken}, so two submitters could start everything twice. "
                f"Use Amazon S3, or a server that supports conditional puts."
            )

    def _broken_promise(self, key: str) -> str:
        """Returns which promise about conditional puts the server does not keep, tried on one object; or nothing."""
        try:
            first = self._put(key, b"1", {"IfNoneMatch": "*"})
        except StorageError as error:
            if isinstance(error.__cause__, Exception) and aws.status(error.__cause__) == aws.NOT_IMPLEMENTED:
                return "has no conditional puts"
            raise
        if first is None:
            return "does not create objects"
        if self.create(key, b"2"):
            return "ignores If-None-Match"
        if self.replace(key, b"3", '"00000000000000000000000000000000"') is not None:
            return "ignores If-Match"
        if self.replace(key, b"4", first) is None:
            return "refuses a right If-Match"
        return ""

    def region(self) -> str | None:
        """Returns the region of the bucket; None if the server does not tell.

        Raises:
            ConfigError: if there is no such bucket.
        """
        answer = self._try("look at", "", lambda: self._client.head_bucket(**self._owner()))
        told: str = answer.get("BucketRegion") or answer["ResponseMetadata"]["HTTPHeaders"].get(
            "x-amz-bucket-region", ""
        )
        return told or None

    def unfinished_uploads(self) -> tuple[UnfinishedUpload, ...]:
        """Returns the multipart uploads below the prefix that were begun and neither finished nor given up."""
        found: tuple[UnfinishedUpload, ...] = ()
        place: dict[str, str] = {}
        start = f"{self.prefix}/" if self.prefix else ""
        while True:
            page: Any = self._try(
                "list the uploads of",
                "",
                lambda place=place: self._client.list_multipart_uploads(**self._owner(), Prefix=start, **place),  # type: ignore[misc]
            )
            found += tuple(
                UnfinishedUpload(upload["Key"][len(start) :], upload["UploadId"], str(upload.get("Initiated", "")))
                for upload in page.get("Uploads", ())
            )
            if not page.get("IsTruncated"):
                return found
            next_place = {"KeyMarker": page.get("NextKeyMarker"), "UploadIdMarker": page.get("NextUploadIdMarker")}
            if not page.get("NextKeyMarker") or next_place == place:
                raise StorageError(f"{self.uri}: the server cut the list of uploads short.")
            place = {name: value for name, value in next_place.items() if value}

    def abort(self, upload: UnfinishedUpload) -> None:
        """Gives up an unfinished upload, so that its parts are no longer kept; one that is gone is no error."""
        patience = self._patience("give up the upload of", upload.key)
        while True:
            try:
                self._client.abort_multipart_upload(**self._at(upload.key), UploadId=upload.upload_id)
                return
            except Exception as error:
                if aws.code(error) == "NoSuchUpload" or aws.status(error) == 404:
                    return
                patience.failed(error)

    def _abort(self, key: str, upload: str) -> None:
        """Gives up an upload of our own that failed, as far as that goes: the bucket's own rule does it in the end."""
        try:
            self._client.abort_multipart_upload(**self._at(key), UploadId=upload)
        except Exception as error:
            if not (_is_passing(error) or aws.status(error) == 404):
                raise self._refusal("give up the upload of", key, error) from error

    # -- calls -----------------------------------------------------------------------------------

    @property
    def _client(self) -> S3Client:
        return self._connection.client

    def _key(self, key: str) -> str:
        check_key(key)
        return f"{self.prefix}/{key}" if self.prefix else key

    def _owner(self) -> dict[str, Any]:
        return {"Bucket": self.bucket, **({"ExpectedBucketOwner": self.account} if self.account else {})}

    def _at(self, key: str) -> dict[str, Any]:
        return {**self._owner(), "Key": self._key(key)}

    def _shown(self, key: str) -> str:
        return printable(f"{self.uri}/{key}" if key else self.uri)

    def _patience(self, action: str, key: str) -> _Patience:
        return _Patience(self, action, key)

    def _try(self, action: str, key: str, call: Callable[[], T]) -> T:
        patience = self._patience(action, key)
        while True:
            try:
                answer = call()
                self._connection.is_proven = True
                return answer
            except Exception as error:
                patience.failed(error)

    def _head(self, key: str) -> Any | None:
        """Returns the description of an object, or None if there is none."""
        patience = self._patience("look at", key)
        while True:
            try:
                return _with(self._client.head_object(**self._at(key)), "ETag")
            except Exception as error:
                if aws.status(error) == 404:
                    return None
                patience.failed(error)

    def _refusal(self, action: str, key: str, error: Exception) -> ArtclfError:
        """Returns the error that says what a person can do about a refusal."""
        where, code, status = self._shown(key), aws.code(error), aws.status(error)
        if code == "NoSuchBucket" or (status == 404 and not key):
            return ConfigError(f"{where}: there is no bucket {self.bucket}. Make it, or name another one.")
        if code == "RequestTimeTooSkewed":
            return ConfigError(
                f"{where}: refused since this machine's clock is wrong by more than 15 minutes ({_clocks(error)}). "
                f"Set the clock."
            )
        if status in (301, 307, 400) and (code in ("PermanentRedirect", "301") or "region" in str(error).lower()):
            region = _header(error, "x-amz-bucket-region")
            return ConfigError(
                f"{where}: the bucket is in another region{f', {region}' if region else ''}. "
                f"Set AWS_REGION to the bucket's region."
            )
        if _is_about_credentials(error):
            return ConfigError(f"{where}: the AWS credentials of this machine are not valid ({aws.reason(error)}).")
        if status == 403 or code in ("AccessDenied", "Forbidden"):
            hint = "" if action == "write" else " (without s3:ListBucket the same is said of an object that is missing)"
            owner = f" or it does not belong to the account {self.account}" if self.account else ""
            return StorageError(f"{where}: no right to {action} it{hint}{owner}: {aws.reason(error)}.")
        return StorageError(f"{where}: cannot {action}: {aws.reason(error)}.")


class _Connection:
    """A client that can be made anew when its credentials have run out."""

    def __init__(self, region: str | None) -> None:
        self._region = region
        self.is_proven = False
        """Whether a call was answered well: from then on missing credentials are taken for a passing fault."""
        self._session = aws.aws_session()
        self.client: S3Client = self._open()

    def renew(self) -> None:
        """Looks for credentials again, wherever this machine keeps them."""
        try:
            self._session = aws.aws_session()
        except ConfigError:  # none at the moment: the calls go on failing until there are some
            return
        self.client = self._open()

    def _open(self) -> S3Client:
        from botocore.config import Config

        # Tries are counted here in time, not there; checksums are our own headers, not trailers added by botocore.
        return aws.client(  # type: ignore[no-any-return]
            self._session,
            "s3",
            region_name=self._region,
            config=Config(
                retries={"total_max_attempts": 1, "mode": "standard"},
                connect_timeout=10,
                read_timeout=60,
                max_pool_connections=32,
                request_checksum_calculation="when_required",
                tcp_keepalive=True,
            ),
        )


class _Patience(aws.Patience):
    """What one call makes of its failures."""

    def __init__(self, storage: S3Storage, action: str, key: str) -> None:
        super().__init__(0.1, 10.0, storage._sleep, storage._clock)
        self._storage, self._action, self._key = storage, action, key
        self._mismatches = 0

    def failed(self, error: Exception) -> None:
        """Waits for the next try. Raises what a person should read if there is none."""
        if isinstance(error, ArtclfError):  # found by ourselves: it has its words
            raise error
        if isinstance(error, KeyError | RecursionError):
            what = f"lacks {error}" if isinstance(error, KeyError) else "leads from one address to the next for ever"
            where = self._storage._shown(self._key)
            raise StorageError(f"{where}: what the server answered {what}: it is none for S3.") from error
        if _is_damage(error):
            self.mismatched("another checksum")
            return
        if not self._may_pass(error):
            raise self._refusal(error) from error
        self.outlast(error)
        if _is_about_credentials(error):
            self._storage._connection.renew()

    def mismatched(self, problem: str) -> None:
        """Waits for the next try after content that was not as it was written."""
        self._mismatches += 1
        error = DamagedObject(f"{self._storage._shown(self._key)}: not as it was written ({problem}).")
        if self._mismatches >= MOST_MISMATCHES:
            raise error
        self.outlast(error)

    def outlast(self, error: Exception) -> None:
        """Waits for the next try after what passes. Raises what a person should read if the budget is used up."""
        proven = self._storage._connection.is_proven
        budget_s = min(self._storage.budget_s, math.inf if proven else aws.FIRST_BUDGET_S)
        if not self.wait(budget_s, str(self._refusal(error)).rstrip(".")):
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> ArtclfError:
        return error if isinstance(error, StorageError) else self._storage._refusal(self._action, self._key, error)

    def _may_pass(self, error: Exception) -> bool:
        if _is_about_credentials(error):
            return self._storage._connection.is_proven
        if aws.code(error) == "SignatureDoesNotMatch":  # of a body damaged on the way; or the secret is wrong
            self._mismatches += 1
            return self._mismatches < MOST_MISMATCHES
        return _is_passing(error)


# -- what answers and errors say -------------------------------------------------------------------


def _with(answer: Any, *names: str) -> Any:
    """Returns an answer that has these members. Raises KeyError for the first that is missing."""
    for name in names:
        if name not in answer:
            raise KeyError(name)
    return answer


def _section(path: Path, start: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def _metadata(sha256: str, writer: str) -> dict[str, str]:
    return {"sha256": sha256, "writer": writer}


def _checksum(sha256: bytes) -> str:
    """Returns a digest in the form of S3's headers."""
    return base64.b64encode(sha256).decode()


def _mismatch(answer: Any, size: int, sha256: Any, md5: Any) -> str | None:
    """Returns in what a whole content differs from its description, or None."""
    if size != answer["ContentLength"]:
        return f"{size:,} bytes instead of {answer['ContentLength']:,}"
    told = answer["Metadata"].get("sha256")
    if told is not None:
        return None if told == sha256.hexdigest() else "another SHA-256"
    return _wrong_etag(answer, md5)


def _wrong_etag(answer: Any, md5: Any) -> str | None:
    """Returns whether the server got other bytes, where its ETag can tell: it is the MD5 of the content unless the
    object was sent in parts or is encrypted with a key of KMS or the customer (S3 API reference, "Object")."""
    tag = answer["ETag"].strip('"').lower()
    other = answer.get("ServerSideEncryption", "").startswith("aws:") or answer.get("SSECustomerAlgorithm")
    return "another MD5" if not other and _MD5.fullmatch(tag) and tag != md5.hexdigest() else None


def _header(error: Exception, name: str) -> str:
    return str(aws.response(error).get("ResponseMetadata", {}).get("HTTPHeaders", {}).get(name, ""))


def _clocks(error: Exception) -> str:
    told = aws.response(error).get("Error", {})
    server = told.get("ServerTime") or _header(error, "date")
    return (
        f"the server has {server or 'another time'}, this machine {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"
    )


def _is_about_credentials(error: Exception) -> bool:
    # The answer to a HEAD has no body that could tell more than 400.
    return aws.is_about_credentials(error) or aws.code(error) == "400"


def _is_damage(error: Exception) -> bool:
    """Says whether botocore found other bytes than the server's checksum is of."""
    from botocore.exceptions import FlexibleChecksumError

    return isinstance(error, FlexibleChecksumError)


def _is_passing(error: Exception) -> bool:
    """Says whether the same call may well succeed a moment later."""
    from botocore.exceptions import IncompleteReadError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError  # of a body: botocore lets those of TLS through as they are

    if aws.is_passing(error) or aws.code(error) in _PASSING:
        return True
    return isinstance(error, IncompleteReadError | ResponseParserError | HTTPError)


__all__ = [
    "PART_BYTES",
    "RECORD_BYTES",
    "DamagedObject",
    "Entry",
    "S3Storage",
    "UnfinishedUpload",
    "split_uri",
]
