"""SageMaker: one training job a trial, on spot machines by default, told by its run's URI alone.

A job's name is given once for ever in an account and region, so it is what makes a start repeatable: who finds
it taken has found the job. Full quotas, throttling and missing capacity are waited out, never failures. States
come from listings, a page of a hundred jobs a call.

boto3 is used, not the sagemaker SDK: its typed resources send the same requests but take 3 s to import, and a
plain request can be shown by ``plan --requests`` and compared whole in a test.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from artclf import aws
from artclf.errors import CapacityError, ConfigError
from jobs.settings import GPU_TAG, MAKE_GPU, CloudSettings, wrong_account
from jobs.spec import BackendError, JobHandle, JobNameTaken, JobSpec, JobState, JobStatus, QuotaError

if TYPE_CHECKING:
    from mypy_boto3_logs import CloudWatchLogsClient

VOLUME_GB = 30  # asked for but unused on ml.g4dn, which have their own NVMe (API reference, ResourceConfig)
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
INTERNAL_RETRIES = 3  # RetryStrategy: of SageMaker's own InternalServerError only (API reference)
CREATE_BUDGET_S, READ_BUDGET_S = 60.0, 600.0
"""For so long one call is repeated while it fails in passing: a create (which the submitter then offers again
later), and any other."""
NOT_OFFERED = ("g4dn.metal",)  # EC2 has it, SageMaker has not (API reference, ResourceConfig, InstanceType)
LONGEST_ARGUMENT = 256  # of ContainerArguments (API reference, AlgorithmSpecification)
PAGE = 100  # the most that ListTrainingJobs returns at once (API reference)
READS_A_MINUTE = 8
LIST_LAG_S = 300.0
"""For so long a job that was just started may be missing from listings, and is not asked for by itself."""
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
_WAITED_TOO_LONG = "MaxWaitTimeExceeded"
"""How a spot job ends that got no machine, or lost it, for longer than it may wait (API, SecondaryStatus)."""
_NOT_FOUND = "Requested resource not found"
_SIGNATURES = ("InvalidSignatureException", "SignatureDoesNotMatch", "IncompleteSignature", "RequestExpired")


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
        self._has_answered = False
        self._started: dict[str, float] = {}  # names of jobs that were started here and not listed yet, and when
        self._seen_alive: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._pages = 1

    @property
    def poll_s(self) -> float:
        """How long to wait between two looks, so that those at large studies stay within READS_A_MINUTE."""
        return max(self._settings.poll_seconds, self._pages * 60 / READS_A_MINUTE if self._pages > 1 else 0)

    def check(self) -> None:
        """Proves that there are credentials, of the right account. Raises ConfigError."""
        found = self._call(lambda: self._client("sts").get_caller_identity()["Account"])
        expected = self._settings.account
        if expected and found != expected:
            raise ConfigError(wrong_account(found, expected))

    def notes(self) -> list[str]:
        """Returns what a person should know before jobs are started."""
        settings, tag = self._settings, self._settings.image_tag
        name, _, digest = settings.image.rpartition("/")[2].partition("@sha256:")
        notes = [
            f"{settings.region}, {f'account {settings.account}' if settings.account else 'no account is named'}, "
            f"image {f'{name}@sha256:{digest[:12]}' if digest else name}"
        ]
        if tag and not tag.endswith(GPU_TAG):
            notes += [f"the image {tag[:12]} is for CPUs, also on machines with a GPU", MAKE_GPU]
        return notes

    def request(self, spec: JobSpec) -> dict[str, Any]:
        """Returns the CreateTrainingJob request.

        Raises:
            ConfigError: if SageMaker has no such machine, or the run's URI is longer than it takes.
        """
        settings = self._settings
        if spec.instance in NOT_OFFERED:
            raise ConfigError(f"resources.instance: SageMaker does not offer {spec.instance}. Choose another one.")
        if len(spec.run_uri) > LONGEST_ARGUMENT:
            raise ConfigError(
                f"{spec.run_uri[:80]}…: expected at most {LONGEST_ARGUMENT} characters for a run's URI, an argument "
                f"of its job, received {len(spec.run_uri)}. Use a shorter --root."
            )
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
            CapacityError: if the account may have no such machine at all.
            JobNameTaken: if it was started before, and has ended.
            BackendError: if SageMaker refuses it, or the name is another study's.
        """
        request = self.request(spec)
        try:
            arn = self._tried(
                lambda: self._client("sagemaker").create_training_job(**request)["TrainingJobArn"], CREATE_BUDGET_S
            )
        except Exception as error:
            code = aws.code(error)
            if code == "ResourceInUse":
                return self._started_before(spec)
            none = re.search(r"service limit '([^']+)' is 0 ", aws.message(error))
            if code == "ResourceLimitExceeded" and none:
                raise CapacityError(
                    f"{spec.name}: this account may have 0 of '{none[1]}', so waiting is of no use. Ask for more "
                    f"(AWS console: Service Quotas, Amazon SageMaker), or choose another resources.instance or spot."
                ) from error
            if code == "ResourceLimitExceeded" or aws.is_passing(error):
                raise QuotaError(f"{spec.name}: {aws.message(error)}") from error
            raise self._refusal(spec.name, error) from error
        return self._handle(spec, arn)

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
        return self._handle(spec, job["TrainingJobArn"])

    def _handle(self, spec: JobSpec, arn: str) -> JobHandle:
        self._started[spec.name] = self._clock()
        self._seen_alive.add(spec.name)
        return JobHandle(self.name, spec.name, arn, spec.trial_id, spec.attempt, spec.run_uri)

    def status(self, handles: Sequence[JobHandle]) -> list[JobStatus]:
        """Returns the states; a job that was recorded and never started is ABSENT."""
        if not handles:
            return []
        listed = self._listed(handles)
        return [self._status(handle, listed.get(handle.name)) for handle in handles]

    def _listed(self, handles: Sequence[JobHandle]) -> dict[str, dict[str, Any]]:
        """Returns the summaries of the jobs by name, and of others: the newest come first, and no further page is
        asked for when all are found."""
        study, wanted = _common(handles), {handle.name for handle in handles}
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
            if page.get("NextToken") in (None, "", place.get("NextToken")) or wanted <= found.keys():
                self._pages = pages
                for name in found:
                    self._started.pop(name, None)
                return found
            place = {"NextToken": page["NextToken"]}

    def _status(self, handle: JobHandle, summary: dict[str, Any] | None) -> JobStatus:
        if summary is None:
            if not handle.remote_id:
                return JobStatus(handle, JobState.ABSENT)
            return JobStatus(handle, JobState.PENDING) if self._is_new(handle) else self._described(handle)
        word = summary["TrainingJobStatus"]
        second = summary.get("SecondaryStatus", "")
        if word == "InProgress":
            state = JobState.PENDING if second in _WAITING else JobState.RUNNING
        else:
            state = _STATES.get(word, JobState.UNKNOWN)
        if state.alive:
            self._seen_alive.add(handle.name)
        # A reason costs a call for each job: only of those that ended before our eyes does anybody want it.
        if state is not JobState.FAILED or handle.name not in self._seen_alive:
            return JobStatus(handle, state, second or word, may_pass=second == _WAITED_TOO_LONG)
        reason = self._reason(handle.name)
        return JobStatus(handle, state, reason, may_pass=any(sign in reason for sign in _NO_CAPACITY))

    def _is_new(self, handle: JobHandle) -> bool:
        return self._clock() < self._started.get(handle.name, -math.inf) + LIST_LAG_S

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
            if status.state.alive and status.word != "Stopping":  # it is refused while an earlier stop is under way
                raise

    def logs(self, handle: JobHandle) -> Iterator[str]:
        """Yields what the job has printed so far, each start of it in its order."""
        client: CloudWatchLogsClient = self._client("logs")
        try:
            streams = self._tried(
                lambda: client.describe_log_streams(
                    logGroupName=LOG_GROUP, logStreamNamePrefix=f"{handle.name}/", orderBy="LogStreamName"
                ),
                aws.FIRST_BUDGET_S,  # somebody waits, and nothing depends on it
            )["logStreams"]
        except Exception as error:
            if aws.code(error) == "ResourceNotFoundException":  # no group before the first line of all
                return
            raise self._refusal(handle.name, error) from error
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
            from botocore.config import Config

            # Tries are counted here in time, not there.
            config = Config(retries={"total_max_attempts": 1, "mode": "standard"}, connect_timeout=10)
            session = aws.aws_session()
            self._clients[service] = aws.client(session, service, region_name=self._settings.region, config=config)
        return self._clients[service]

    def _call(self, call: Callable[[], Any], budget_s: float = READ_BUDGET_S) -> Any:
        """Makes a call that can be repeated. Raises what a person should read if it fails for good."""
        try:
            return self._tried(call, budget_s)
        except Exception as error:
            raise self._refusal("", error) from error

    def _tried(self, call: Callable[[], Any], budget_s: float) -> Any:
        """Makes a call, again and again while it fails in passing."""
        patience = aws.Patience(1.0, 20.0, self._sleep, self._clock)
        while True:
            try:
                answer = call()
                self._has_answered = True
                return answer
            except Exception as error:
                is_about_credentials = self._has_answered and aws.is_about_credentials(error)
                if not (is_about_credentials or aws.is_passing(error)):
                    raise
                is_reached = self._has_answered or bool(aws.code(error))
                told = f"AWS, {self._settings.region}: {aws.reason(error)}"
                if not patience.wait(budget_s if is_reached else min(budget_s, aws.FIRST_BUDGET_S), told):
                    raise
            if is_about_credentials:
                self._renew()

    def _renew(self) -> None:
        """Looks for credentials again, wherever this machine keeps them."""

        with contextlib.suppress(ConfigError):  # none at the moment: the old ones fail until there are some
            aws.aws_session()
            self._clients.clear()

    def _refusal(self, name: str, error: Exception) -> Exception:
        from botocore.exceptions import BotoCoreError, ClientError

        if not isinstance(error, BotoCoreError | ClientError | ConnectionError):
            return error
        code, told, region = aws.code(error), aws.message(error), self._settings.region
        where = f"{name}: " if name else ""
        if code in _SIGNATURES and ("expired" in told or "not yet current" in told):
            return ConfigError(f"{where}AWS and this machine differ in their clocks: {told} Set the clock.")
        if aws.is_about_credentials(error) or code in _SIGNATURES:
            return ConfigError(f"{where}the AWS credentials of this machine are not valid in {region}: {told}")
        if code in ("AccessDeniedException", "AccessDenied"):
            return ConfigError(f"{where}the AWS credentials of this machine lack a right: {told}")
        if not code and not self._has_answered:
            hint = " Is that the right region?" if aws.is_passing(error) else ""
            return ConfigError(f"{where}AWS cannot be used in {region}: {told}{hint}")
        return BackendError(f"{where}AWS refused: {told}")


def _common(handles: Sequence[JobHandle]) -> str:
    """Returns what the names of a study's jobs have in common: the study's name and a dash."""
    first = handles[0]
    return first.name.removesuffix(f"{first.trial_id}-a{first.attempt}")


def _digest(image: str) -> str:
    return image.rpartition("@")[2] if "@sha256:" in image else image
