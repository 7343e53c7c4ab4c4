"""SageMaker: one training job a trial, on spot machines by default, told by its run's URI alone.

A job's name is given once for ever in an account and region, so it is what makes a start repeatable: who finds
it taken has found the job. Full quotas, throttling and missing capacity are waited out, never failures. States
come from listings, a page of a hundred jobs a call.

boto3 is used, not the sagemaker SDK: its typed resources send the same requests but take 3 s to import, and a
plain request can be shown by ``plan --requests`` and compared whole in a test.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from artclf.errors import ConfigError
from jobs.settings import CloudSettings
from jobs.spec import BackendError, JobHandle, JobNameTaken, JobSpec, JobState, JobStatus, QuotaError

if TYPE_CHECKING:
    from mypy_boto3_logs import CloudWatchLogsClient

VOLUME_GB = 30  # asked for but unused on ml.g4dn, which have their own NVMe (API reference, ResourceConfig)
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
INTERNAL_RETRIES = 3  # RetryStrategy: of SageMaker's own InternalServerError only (API reference)
CREATE_BUDGET_S = 600.0
"""For so long one job is offered again while SageMaker says that too many calls were made."""
PAGE = 100  # the most that ListTrainingJobs returns at once (API reference)
READS_A_MINUTE = 8
DEFAULT_WAIT_FACTOR = 2.0
"""How long a spot job may take in all, waiting included, as a multiple of its running time, where nothing is said."""

METRICS = {
    name: rf"epoch \d+/\d+ .*{pattern}"
    for name, pattern in {
        "loss": r"loss ([0-9.]+) ",
        "val_loss": r"loss [0-9.]+ \(val ([0-9.]+)\)",
        "accuracy": r"accuracy ([0-9.]+) ",
        "val_accuracy": r"accuracy [0-9.]+ \(val ([0-9.]+)\)",
    }.items()
}
"""What SageMaker reads from the line that the trainer prints after each epoch."""

_STATES = {
    "Completed": JobState.SUCCEEDED,
    "Failed": JobState.FAILED,
    "Stopping": JobState.RUNNING,
    "Stopped": JobState.STOPPED,
}
_WAITING = ("Starting", "Pending", "LaunchingMLInstances", "PreparingTrainingStack", "Interrupted", "Restarting")
_NO_CAPACITY = ("CapacityError", "InsufficientCapacity", "InsufficientInstanceCapacity")
_NOT_FOUND = "Requested resource not found"
_THROTTLED = ("ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded")


class SageMakerBackend:
    """Training jobs of one account and region.

    Args:
        settings: the account's bucket, role and image.
        sleep, clock: tests pass their own.
    """

    name = "sagemaker"
    is_remote = True

    def __init__(
        self,
        settings: CloudSettings,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._sleep, self._clock = settings, sleep, clock
        self._clients: dict[str, Any] = {}
        self._reasons: dict[str, str] = {}
        self._pages = 1

    @property
    def poll_s(self) -> float:
        """How long to wait between two looks, so that those at large studies stay within READS_A_MINUTE."""
        return max(self._settings.poll_seconds, (self._pages - 1) * 60 / READS_A_MINUTE)

    def check(self) -> None:
        """Proves that there are credentials, of the right account. Raises ConfigError."""
        found = self._call(lambda: self._client("sts").get_caller_identity()["Account"])
        expected = self._settings.account
        if expected and found != expected:
            raise ConfigError(
                f"the AWS credentials of this machine are of the account {found}, cloud.yaml expects {expected}. "
                f"Choose another AWS_PROFILE, or mend cloud.yaml."
            )

    def request(self, spec: JobSpec) -> dict[str, Any]:
        """Returns the CreateTrainingJob request."""
        settings = self._settings
        run_s = max(60, math.ceil(spec.max_hours * 3600))
        stopping = {"MaxRuntimeInSeconds": run_s}
        if spec.spot:
            wait_hours = spec.max_wait_hours or spec.max_hours * DEFAULT_WAIT_FACTOR
            stopping["MaxWaitTimeInSeconds"] = min(max(run_s, math.ceil(wait_hours * 3600)), 28 * 86400)
        machine: dict[str, Any] = {
            "InstanceType": f"ml.{spec.instance}",
            "InstanceCount": 1,
            "VolumeSizeInGB": VOLUME_GB,
        }
        if settings.warm_pool_minutes and not spec.spot:  # warm pools take no spot jobs (Developer Guide)
            machine["KeepAlivePeriodInSeconds"] = settings.warm_pool_minutes * 60
        return {
            "TrainingJobName": spec.name,
            "AlgorithmSpecification": {
                "TrainingImage": settings.image,
                "TrainingInputMode": "File",
                "ContainerArguments": ["--run-uri", spec.run_uri],
                "MetricDefinitions": [{"Name": name, "Regex": regex} for name, regex in METRICS.items()],
            },
            "RoleArn": settings.role_arn,
            "OutputDataConfig": {"S3OutputPath": f"{spec.run_uri.rpartition('/runs/')[0]}/sagemaker"},
            "ResourceConfig": machine,
            "StoppingCondition": stopping,
            "EnableManagedSpotTraining": spec.spot,
            "RetryStrategy": {"MaximumRetryAttempts": INTERNAL_RETRIES},
            "Environment": {"ARTCLF_INSTANCE": f"ml.{spec.instance}", "ARTCLF_IMAGE_DIGEST": _digest(settings.image)},
            "Tags": [{"Key": key, "Value": value} for key, value in sorted(spec.tags.items())],
        }

    def submit(self, spec: JobSpec) -> JobHandle:
        """Starts the job, or finds that it was started before.

        Raises:
            QuotaError: if the quota of such machines is full, or SageMaker takes no more calls now.
            JobNameTaken: if it was started before, and has ended.
            BackendError: if SageMaker refuses it, or the name is another study's.
        """
        request = self.request(spec)
        until, pause_s = self._clock() + CREATE_BUDGET_S, 1.0
        while True:
            try:
                arn = self._client("sagemaker").create_training_job(**request)["TrainingJobArn"]
                return JobHandle(self.name, spec.name, arn, spec.trial_id, spec.attempt, spec.run_uri)
            except Exception as error:
                code = _code(error)
                if code == "ResourceInUse":
                    return self._started_before(spec)
                if code == "ResourceLimitExceeded":
                    raise QuotaError(f"{spec.name}: {_message(error)}") from error
                passing = code in _THROTTLED or _is_lost(error)
                if not passing:
                    raise self._refusal(spec.name, error) from error
                if self._clock() >= until:
                    raise QuotaError(f"{spec.name}: {_message(error)}") from error
                self._sleep(random.uniform(0.5, 1) * pause_s)
                pause_s = min(pause_s * 2, 20.0)

    def _started_before(self, spec: JobSpec) -> JobHandle:
        job = self._call(lambda: self._client("sagemaker").describe_training_job(TrainingJobName=spec.name))
        arguments = job["AlgorithmSpecification"].get("ContainerArguments", [])
        if arguments != ["--run-uri", spec.run_uri]:
            raise BackendError(
                f"{spec.name}: this account has a job of that name for another run ({' '.join(arguments)[:200]}), and "
                f"SageMaker gives a name once. Give the study another name."
            )
        if job["TrainingJobStatus"] in ("Completed", "Failed", "Stopped"):
            raise JobNameTaken(f"{spec.name}: has ended already ({job['TrainingJobStatus']}).")
        return JobHandle(self.name, spec.name, job["TrainingJobArn"], spec.trial_id, spec.attempt, spec.run_uri)

    def status(self, handles: Sequence[JobHandle]) -> list[JobStatus]:
        """Returns the states; a job that was recorded and never started is ABSENT."""
        if not handles:
            return []
        listed = self._listed(handles)
        return [self._status(handle, listed.get(handle.name)) for handle in handles]

    def _listed(self, handles: Sequence[JobHandle]) -> dict[str, dict[str, Any]]:
        """Returns the summaries of all jobs of the study by name."""
        study = _common(handles)
        found: dict[str, dict[str, Any]] = {}
        place: dict[str, str] = {}
        pages = 0
        while True:
            page: Any = self._call(
                lambda place=place: self._client("sagemaker").list_training_jobs(  # type: ignore[misc]
                    NameContains=study, MaxResults=PAGE, SortBy="CreationTime", SortOrder="Descending", **place
                )
            )
            pages += 1
            found |= {job["TrainingJobName"]: job for job in page["TrainingJobSummaries"]}
            if not page.get("NextToken"):
                self._pages = pages
                return found
            place = {"NextToken": page["NextToken"]}

    def _status(self, handle: JobHandle, summary: dict[str, Any] | None) -> JobStatus:
        if summary is None:
            if not handle.remote_id:
                return JobStatus(handle, JobState.ABSENT)
            return self._described(handle)
        word = summary["TrainingJobStatus"]
        second = summary.get("SecondaryStatus", "")
        if word == "InProgress":
            return JobStatus(handle, JobState.PENDING if second in _WAITING else JobState.RUNNING, second)
        state = _STATES.get(word, JobState.UNKNOWN)
        if state is not JobState.FAILED:
            return JobStatus(handle, state, second or word)
        reason = self._reason(handle.name)
        return JobStatus(handle, state, reason, may_pass=any(sign in reason for sign in _NO_CAPACITY))

    def _described(self, handle: JobHandle) -> JobStatus:
        """Returns the state of a job that was started and is in no listing: not there yet, or deleted."""
        try:
            job = self._call(lambda: self._client("sagemaker").describe_training_job(TrainingJobName=handle.name))
        except BackendError as error:
            if _NOT_FOUND in str(error):
                return JobStatus(handle, JobState.FAILED, "SageMaker no longer knows it")
            raise
        return self._status(handle, dict(job))

    def _reason(self, name: str) -> str:
        if name not in self._reasons:
            job = self._call(lambda: self._client("sagemaker").describe_training_job(TrainingJobName=name))
            self._reasons[name] = job.get("FailureReason", "")
        return self._reasons[name]

    def stop(self, handle: JobHandle) -> None:
        """Asks a job to save and end: SIGTERM, and SIGKILL 120 s later; one that has ended is left alone."""
        try:
            self._call(lambda: self._client("sagemaker").stop_training_job(TrainingJobName=handle.name))
        except BackendError:
            (status,) = self.status([handle])
            if status.state.alive:
                raise

    def logs(self, handle: JobHandle) -> Iterator[str]:
        """Yields what the job has printed so far, each start of it in its order."""
        client: CloudWatchLogsClient = self._client("logs")
        try:
            streams = self._call(
                lambda: client.describe_log_streams(
                    logGroupName=LOG_GROUP, logStreamNamePrefix=f"{handle.name}/", orderBy="LogStreamName"
                )
            )["logStreams"]
        except BackendError:  # no group or no stream before the first line
            return
        for stream in sorted(streams, key=lambda stream: stream.get("creationTime", 0)):
            place: dict[str, str] = {}
            while True:
                page: Any = self._call(
                    lambda stream=stream, place=place: client.get_log_events(  # type: ignore[misc]
                        logGroupName=LOG_GROUP, logStreamName=stream["logStreamName"], startFromHead=True, **place
                    )
                )
                yield from (event["message"] for event in page["events"])
                if page["nextForwardToken"] == place.get("nextToken"):
                    break
                place = {"nextToken": page["nextForwardToken"]}

    # -- calls -----------------------------------------------------------------------------------

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            # The standard mode tries 3 times in 2 s: enough for reads; creates have a patience of their own.
            from botocore.config import Config

            from artclf.s3 import aws_session

            retries = {"total_max_attempts": 1 if service == "sagemaker" else 5, "mode": "standard"}
            self._clients[service] = aws_session().client(
                service,
                region_name=self._settings.region,
                config=Config(retries=retries),  # type: ignore[arg-type]
            )
        return self._clients[service]

    def _call(self, call: Callable[[], Any]) -> Any:
        """Makes a call that can be repeated, again and again while it fails in passing."""
        until, pause_s = self._clock() + CREATE_BUDGET_S, 1.0
        while True:
            try:
                return call()
            except Exception as error:
                passing = _code(error) in _THROTTLED or _is_lost(error)
                if not passing or self._clock() >= until:
                    raise self._refusal("", error) from error
                self._sleep(random.uniform(0.5, 1) * pause_s)
                pause_s = min(pause_s * 2, 20.0)

    def _refusal(self, name: str, error: Exception) -> Exception:
        from botocore.exceptions import NoCredentialsError

        if isinstance(error, ConfigError):
            return error
        code = _code(error)
        where = f"{name}: " if name else ""
        if isinstance(error, NoCredentialsError) or "Token" in code or code == "UnrecognizedClientException":
            return ConfigError(f"{where}the AWS credentials of this machine are not valid: {_message(error)}")
        if code in ("AccessDeniedException", "AccessDenied"):
            return ConfigError(f"{where}the AWS credentials of this machine lack a right: {_message(error)}")
        return BackendError(f"{where}SageMaker refused: {_message(error)}")


def _common(handles: Sequence[JobHandle]) -> str:
    """Returns what the names of a study's jobs have in common: the study's name and a dash."""
    first = handles[0]
    return first.name.removesuffix(f"{first.trial_id}-a{first.attempt}")


def _digest(image: str) -> str:
    return image.rpartition("@")[2] if "@sha256:" in image else image


def _code(error: Exception) -> str:
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _message(error: Exception) -> str:
    response = getattr(error, "response", None)
    told = response.get("Error", {}) if isinstance(response, dict) else {}
    return " ".join(str(told.get("Message") or error).split())[:400]


def _is_lost(error: Exception) -> bool:
    """Says whether no answer came, or one that says to try again: the call may have been carried out."""
    from botocore.exceptions import HTTPClientError

    response = getattr(error, "response", None)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) if isinstance(response, dict) else 0
    return isinstance(error, HTTPClientError | ConnectionError) or status >= 500
