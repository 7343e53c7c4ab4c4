"""SageMaker's training jobs: what a request must keep besides AWS's model, quotas, lists, tags, and time.

What the model says is in brackets with [API]; what only the service's answers show, with [seen] (public issues).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tests.fake_aws.logs import FakeLogs
from tests.fake_aws.model import Params
from tests.fake_aws.protocols import ServiceError
from tests.fake_aws.server import FakeAws
from tests.fake_aws.service import Service
from tests.fake_aws.training_job import (
    DEFAULT_RUNTIME_S,
    GRACE_S,
    Durations,
    Job,
    Machine,
    Platform,
    Start,
    Workload,
)

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
MOST_RUNTIME_S = 28 * 86_400
"""API StoppingCondition: "The maximum value is 28 days"."""
MOST_TAGS = 50
LOCAL_STORAGE = ("ml.p4d.", "ml.g4dn.", "ml.g5.")
"""The families that API ResourceConfig names for NVMe storage of their own, where no VolumeKmsKeyId is taken."""
TICKS_A_LOOK = 5
"""The policy of interruptions, which may read from S3, is asked only at every fifth tick."""
PAGE = 10
"""Jobs of a page when MaxResults is not given; not documented."""
SORT_KEYS: dict[str, Callable[[Job], Any]] = {
    "Name": lambda job: job.name,
    "CreationTime": lambda job: job.created,
    "Status": lambda job: job.status,
}


class FakeSageMaker(Service):
    """SageMaker, of which the training jobs are played.

    Attributes:
        jobs: name → job, but for the deleted ones.
        history: all jobs, in the order of their creation.
    """

    name = "sagemaker"

    def __init__(
        self,
        workload: Workload | Callable[[Job], Workload],
        *,
        durations: Durations | Callable[[Job], Durations] = Durations(),  # noqa: B008 - frozen
        quotas: Mapping[str, int] | None = None,
        lacks_capacity: Callable[[Job], bool] = lambda job: False,
        interrupt_when: Callable[[Job], bool] | None = None,
        reclaim_grace_s: float = 0.0,
        stop_grace_s: float = GRACE_S,
        spot_discount: float = 0.7,
        list_lag_s: float = 0.0,
    ) -> None:
        """Args:
        workload: what jobs do, the same for all or chosen for each.
        quotas: most instances of a quota, by its name in Service Quotas (``ml.g4dn.xlarge for training job
            usage``, ``… for spot training job usage``); no limit where none is named.
        lacks_capacity: asked when instances are about to be had; True fails the job.
        interrupt_when: asked of each training spot job several times a real second; True takes its machine.
            It may use S3, but not this server's clients.
        reclaim_grace_s: fake seconds from SIGTERM to SIGKILL when a spot machine is lost; 0: SIGKILL without a word.
        list_lag_s: so long after its creation a job is not yet listed.
        """
        self.jobs: dict[str, Job] = {}
        self.history: list[Job] = []
        self.quotas = dict(quotas or {})
        self._interrupt_when = interrupt_when
        self._reclaim_grace_s = reclaim_grace_s
        self._list_lag_s = list_lag_s
        self._ticks = 0
        self._workload = workload
        self.background = interrupt_when is not None or not isinstance(workload, Workload) or workload.real
        self._platform = Platform(
            self._start,
            durations if callable(durations) else _always(durations),
            lacks_capacity,
            stop_grace_s,
            spot_discount,
        )

    def attach(self, aws: FakeAws) -> None:
        """Takes its place in an account, and finds the logs there."""
        super().attach(aws)
        logs = aws.services.get("logs")
        self._logs = logs if isinstance(logs, FakeLogs) else FakeLogs()

    # -- time ------------------------------------------------------------------------------------

    def settle(self, now: float) -> None:
        """Lets all jobs do what was due until now, in the order of time."""
        while (job := min(self._alive(), key=Job.due, default=None)) is not None and job.due() <= now:
            job.go_on()

    def tick(self) -> None:
        """Lets time pass for real processes, and asks the policy of interruptions."""
        with self.aws.changed:
            self.settle(self.aws.clock.now())
            at_risk = [job for job in self._alive() if job.spot and job.secondary == "Training"]
        self._ticks += 1
        if self._interrupt_when is None or self._ticks % TICKS_A_LOOK:
            return
        for job in at_risk:
            start = job.starts
            if self._interrupt_when(job):  # outside the lock: it may read from S3
                with self.aws.changed:
                    if job.secondary == "Training" and job.starts == start:
                        job.interrupt(self.aws.clock.now(), self._reclaim_grace_s)

    def interrupt(self, name: str, grace_s: float | None = None) -> None:
        """Takes the spot machine of a job now. Raises ValueError if it has none."""
        with self.aws.changed:
            now = self.aws.clock.now()
            self.settle(now)
            self.jobs[name].interrupt(now, self._reclaim_grace_s if grace_s is None else grace_s)

    def job(self, name: str) -> Job:
        """Returns a job as it is now, for tests to look at."""
        with self.aws.changed:
            self.settle(self.aws.clock.now())
            return self.jobs[name]

    def most_alive(self, spot: bool | None = None) -> int:
        """Returns how many jobs there ever were at once that had not ended, of spot or on-demand or both."""
        chosen = [job for job in self.history if spot is None or job.spot == spot]
        return _most_at_once((job.created, math.inf if job.ended is None else job.ended) for job in chosen)

    def close(self) -> None:
        """Kills what still runs, and waits for it."""
        with self.aws.changed:
            machines = [job.kill(self.aws.clock.now()) for job in self._alive()]
        for machine in machines:
            if machine is not None:
                machine.result()

    def _alive(self) -> list[Job]:
        return [job for job in self.history if job.ended is None]

    def _start(self, job: Job, at: float) -> Machine:
        stream = f"{job.name}/algo-1-{int(at)}"

        def log(line: str, at: float) -> None:
            with self.aws.changed:
                job.note_line(line, at)
                self._logs.put(LOG_GROUP, stream, at, line)
                self.aws.changed.notify_all()

        workload = self._workload if isinstance(self._workload, Workload) else self._workload(job)
        return workload.start(Start(job, at, self.aws.account, self.aws.region, self.aws.clock.now, log))

    # -- operations ------------------------------------------------------------------------------

    def create_training_job(self, params: Params, now: float) -> Params:
        """Starts a job, unless a rule, its name or a quota forbids it."""
        for broken, message in _rules(params):
            if broken:
                raise self.refuse(message)
        self._check_tags(params.get("Tags", []), {})
        name = params["TrainingJobName"]
        if name in self.jobs:
            message = "Training job names must be unique within an AWS account and region, and a training job with "
            raise ServiceError("ResourceInUse", f"{message}this name already exists ({self.jobs[name].arn})")  # [seen]
        arn = f"arn:aws:sagemaker:{self.aws.region}:{self.aws.account}:training-job/{name}"
        pool = self._pool(params, now)
        job = Job(params, arn, now, self._platform, is_warm=pool is not None)
        self._check_quota(job)
        if pool is not None:
            pool.reused_by = name
        self.jobs[name] = job
        self.history.append(job)
        return {"TrainingJobArn": arn}

    def describe_training_job(self, params: Params, now: float) -> Params:
        """Returns all about a job."""
        job = self._job(params)
        output = self.model.operation_model("DescribeTrainingJob").output_shape
        assert output is not None
        folder = f"{job.request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{job.name}"
        return _without_nothing(
            {
                "StoppingCondition": {"MaxRuntimeInSeconds": DEFAULT_RUNTIME_S},
                "EnableManagedSpotTraining": False,
                "EnableNetworkIsolation": False,
                "EnableInterContainerTrafficEncryption": False,
                **{name: value for name, value in job.request.items() if name in output.members},
                **_summary(job, now),
                "ModelArtifacts": {"S3ModelArtifacts": f"{folder}/output/model.tar.gz"},
                "FailureReason": job.failure_reason or None,
                "TrainingStartTime": job.run_began,
                "TrainingTimeInSeconds": max(1, round(job.run_s)) if job.ended and job.run_s else None,
                "BillableTimeInSeconds": max(1, round(job.billable_s)) if job.ended and job.run_s else None,
                "SecondaryStatusTransitions": [transition.shown() for transition in job.transitions],
                "FinalMetricDataList": [
                    {"MetricName": name, "Value": value, "Timestamp": time}
                    for name, (value, time) in job.metrics.items()
                    if math.isfinite(value)
                ]
                or None,
            }
        )

    def list_training_jobs(self, params: Params, now: float) -> Params:
        """Returns a page of jobs. StatusEquals beside MaxResults thins the page out only afterwards [API, its note]."""
        descending = params.get("SortOrder", "Ascending") == "Descending"
        sort_key = SORT_KEYS[params.get("SortBy", "CreationTime")]
        listed = [(sort_key(job), job.name, job) for job in self.jobs.values() if self._is_listed(job, params, now)]
        listed.sort(key=lambda place: place[:2], reverse=descending)
        query = {name: value for name, value in params.items() if name not in ("NextToken", "MaxResults")}
        if "NextToken" in params:
            last = self._read_token(params["NextToken"], query)
            listed = [place for place in listed if (place[:2] < last if descending else place[:2] > last)]
        page = listed[: params.get("MaxResults", PAGE)]
        summaries = [_summary(job, now) for *_, job in page if job.status == params.get("StatusEquals", job.status)]
        token = _token(query, page[-1][:2]) if len(page) < len(listed) else None
        return _without_nothing({"TrainingJobSummaries": summaries, "NextToken": token})

    def stop_training_job(self, params: Params, now: float) -> Params:
        """Asks a job to end; one that has ended, or is about to, is refused [seen]."""
        job = self._job(params)
        if job.status != "InProgress":
            raise self.refuse(f"The request was rejected because the training job is in status {job.status}.")
        job.stop(now)
        return {}

    def delete_training_job(self, params: Params, now: float) -> Params:
        """Forgets a job that has ended; its name is free again [API]."""
        if params["TrainingJobName"] not in self.jobs:
            raise ServiceError("ResourceNotFound", "Requested resource not found.")
        job = self.jobs[params["TrainingJobName"]]
        if job.ended is None or _pool_word(job, now) == "Available":
            message = f"The request was rejected because the training job is in status {job.status}."
            raise ServiceError("ResourceInUse", message)
        del self.jobs[job.name]
        return {}

    def list_tags(self, params: Params, now: float) -> Params:
        """Returns the tags of a job."""
        return {"Tags": _tags(self._by_arn(params).tags)}

    def add_tags(self, params: Params, now: float) -> Params:
        """Adds tags to a job, or gives them other values."""
        job = self._by_arn(params)
        self._check_tags(params["Tags"], job.tags)
        job.tags.update({tag["Key"]: tag["Value"] for tag in params["Tags"]})
        return {"Tags": _tags(job.tags)}

    def delete_tags(self, params: Params, now: float) -> Params:
        """Takes tags from a job."""
        job = self._by_arn(params)
        job.tags = {key: value for key, value in job.tags.items() if key not in params["TagKeys"]}
        return {}

    # -- their parts -----------------------------------------------------------------------------

    def _job(self, params: Params) -> Job:
        try:
            return self.jobs[params["TrainingJobName"]]
        except KeyError:
            raise self.refuse("Requested resource not found.") from None  # [seen]; not ResourceNotFound as in [API]

    def _by_arn(self, params: Params) -> Job:
        job = next((job for job in self.jobs.values() if job.arn == params["ResourceArn"]), None)
        if job is None:
            raise self.refuse("Requested resource not found.")
        return job

    def _check_tags(self, tags: list[Params], present: Mapping[str, str]) -> None:
        keys = [tag["Key"] for tag in tags]
        if len(set(keys)) < len(keys):
            raise self.refuse("Tag keys must be unique per resource.")
        if any(key.lower().startswith("aws:") for key in keys):
            raise self.refuse("The tag prefix 'aws:' is reserved for use by AWS: it cannot begin a tag key.")
        if len({*keys, *present}) > MOST_TAGS:
            raise self.refuse(f"A resource can have at most {MOST_TAGS} tags.")

    def _check_quota(self, job: Job) -> None:
        used = sum(other.instances for other in self._alive() if other.quota == job.quota)
        limit = self.quotas.get(job.quota)
        if limit is not None and used + job.instances > limit:
            raise ServiceError(  # [seen]
                "ResourceLimitExceeded",
                f"The account-level service limit '{job.quota}' is {limit} Instances, with current utilization of "
                f"{used} Instances and a request delta of {job.instances} Instances. Please use AWS Service Quotas to "
                f"request an increase for this quota. If AWS Service Quotas is not available, contact AWS support to "
                f"request an increase for this quota.",
            )

    def _pool(self, params: Params, now: float) -> Job | None:
        """Returns the job whose warm pool fits a request."""
        for job in self.jobs.values():
            if _pool_word(job, now) == "Available" and _cluster(job.request) == _cluster(params):
                return job
        return None

    def _is_listed(self, job: Job, params: Params, now: float) -> bool:
        modified = job.transitions[-1].start
        thins_out_later = "MaxResults" in params
        return (
            now >= job.created + self._list_lag_s
            and params.get("NameContains", "").lower() in job.name.lower()
            and job.created > params.get("CreationTimeAfter", -math.inf)
            and job.created < params.get("CreationTimeBefore", math.inf)
            and modified > params.get("LastModifiedTimeAfter", -math.inf)
            and modified < params.get("LastModifiedTimeBefore", math.inf)
            and (thins_out_later or job.status == params.get("StatusEquals", job.status))
            and params.get("WarmPoolStatusEquals", _pool_word(job, now)) == _pool_word(job, now)
        )

    def _read_token(self, token: str, query: Params) -> tuple[Any, str]:
        try:
            digest, key, name = json.loads(base64.b64decode(token, validate=True))
        except ValueError:
            raise self.refuse("Invalid NextToken.") from None
        if digest != _digest(query):
            raise self.refuse("Invalid NextToken: the other parameters changed since it was given.")
        return key, name


def _always(durations: Durations) -> Callable[[Job], Durations]:
    return lambda job: durations


def _rules(params: Params) -> Iterable[tuple[object, str]]:
    """Yields (broken, message) of each rule for CreateTrainingJob that AWS's model cannot say."""
    algorithm, resources = params["AlgorithmSpecification"], params.get("ResourceConfig", {})
    instance = resources.get("InstanceType", "")
    condition, spot = params.get("StoppingCondition", {}), params.get("EnableManagedSpotTraining", False)
    runtime_s, wait_s = condition.get("MaxRuntimeInSeconds", DEFAULT_RUNTIME_S), condition.get("MaxWaitTimeInSeconds")
    channels = [channel["ChannelName"] for channel in params.get("InputDataConfig", [])]
    has_local_storage = instance.startswith(LOCAL_STORAGE)
    yield (
        ("TrainingImage" in algorithm) == ("AlgorithmName" in algorithm),
        "Exactly one of TrainingImage and AlgorithmName must be given in AlgorithmSpecification.",
    )
    yield (
        not instance or resources.get("InstanceCount", 0) < 1,
        "InstanceType and an InstanceCount of at least 1 are required in ResourceConfig.",
    )
    yield (
        not has_local_storage and resources.get("VolumeSizeInGB", 0) < 1,
        f"VolumeSizeInGB must be at least 1 for {instance}, which has no local storage.",
    )
    yield (
        has_local_storage and "VolumeKmsKeyId" in resources,
        f"VolumeKmsKeyId cannot be requested for {instance}, whose local storage is encrypted by hardware.",
    )
    yield runtime_s > MOST_RUNTIME_S, f"MaxRuntimeInSeconds must be at most {MOST_RUNTIME_S} (28 days)."
    yield spot and wait_s is None, "MaxWaitTimeInSeconds is required when EnableManagedSpotTraining is true."
    yield not spot and wait_s is not None, "MaxWaitTimeInSeconds requires EnableManagedSpotTraining to be true."
    yield (
        wait_s is not None and wait_s < runtime_s,
        f"MaxWaitTimeInSeconds ({wait_s}) must be greater than or equal to MaxRuntimeInSeconds ({runtime_s}).",
    )
    yield (
        spot and resources.get("KeepAlivePeriodInSeconds"),
        "KeepAlivePeriodInSeconds cannot be used with EnableManagedSpotTraining.",
    )
    yield len(set(channels)) < len(channels), "Channel names must be unique."


def _summary(job: Job, now: float) -> Params:
    """Returns what ListTrainingJobs shows of a job."""
    return _without_nothing(
        {
            "TrainingJobName": job.name,
            "TrainingJobArn": job.arn,
            "CreationTime": job.created,
            "TrainingEndTime": job.ended if job.run_began is not None else None,
            "LastModifiedTime": job.transitions[-1].start,
            "TrainingJobStatus": job.status,
            "SecondaryStatus": job.secondary,
            "WarmPoolStatus": job.pool_status(now),
        }
    )


def _pool_word(job: Job, now: float) -> str:
    pool = job.pool_status(now)
    return str(pool["Status"]) if pool is not None else ""


def _without_nothing(members: Params) -> Params:
    return {name: value for name, value in members.items() if value is not None}


def _tags(tags: Mapping[str, str]) -> list[Params]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _cluster(params: Params) -> Any:
    """Returns what two jobs must share for a warm pool to pass from one to the other."""
    resources = {k: v for k, v in params["ResourceConfig"].items() if k != "KeepAlivePeriodInSeconds"}
    return params["RoleArn"], resources, params.get("VpcConfig")


def _digest(query: Params) -> str:
    return hashlib.sha256(json.dumps(query, sort_keys=True).encode()).hexdigest()[:16]


def _token(query: Params, last: tuple[Any, str]) -> str:
    return base64.b64encode(json.dumps([_digest(query), *last]).encode()).decode()


def _most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """Returns how many spans of time overlap at most; one that begins where another ends does not overlap it."""
    events = sorted((time, change) for begin, end in spans for time, change in ((begin, 1), (end, -1)))
    most = alive = 0
    for _, change in events:
        alive += change
        most = max(most, alive)
    return most
