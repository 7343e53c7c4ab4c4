"""CloudSettings: the bucket, image and role that jobs in the cloud use, from one small file.

# cloud.yaml (or the file that $ARTCLF_CLOUD names); nothing secret is in it
bucket: my-art                   # data sets, runs and reports
region: us-east-1
account: "123456789012"          # a guard: commands stop if the credentials are another account's
role_arn: arn:aws:iam::123456789012:role/artclf
image: 123456789012.dkr.ecr.us-east-1.amazonaws.com/artclf@sha256:…   # as `make push` recorded it
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from artclf.errors import ConfigError, nearest, printable
from artclf.s3 import split_uri
from artclf.strict_yaml import load

FILE = Path("cloud.yaml")
VARIABLE = "ARTCLF_CLOUD"
PUSHED = Path(".artclf/image.json")
"""Where `make push` records the image that it pushed."""
GPU_TAG = "-gpu"
"""How the tag of an image ends that holds CUDA's libraries."""
MAKE_GPU = "one for GPUs: TF_PACKAGE='tensorflow[and-cuda]' make image push"

_RANGES = {"warm_pool_minutes": (0, 60), "poll_seconds": (1, 3600)}
_FORMS = {
    # Rules of names: S3 User Guide, "General purpose bucket naming rules".
    "bucket": (
        r"(?!.*(\.\.|\.-|-\.))(?!([0-9]+\.){3}[0-9]+$)[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]",
        "the name of a bucket",
    ),
    "region": (r"[a-z]{2}(-[a-z]+)+-[0-9]", "a region, such as us-east-1"),
    "account": (r"[0-9]{12}", "an account's 12 digits, in quotes"),
    # Lengths and forms of CreateTrainingJob (SageMaker API reference, RoleArn and TrainingImage).
    "role_arn": (r"(?=.{20,2048}$)arn:aws[a-z\-]*:iam::[0-9]{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+", "the ARN of a role"),
    "image": (
        r"(?=.{1,255}$)[0-9]{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/[\x21-\x7e]+",
        "an image in ECR, such as 123456789012.dkr.ecr.us-east-1.amazonaws.com/artclf@sha256:…",
    ),
    "root": (r"s3://.+", "s3://BUCKET/PREFIX"),
}


@dataclass(frozen=True)
class CloudSettings:
    """Where jobs of the cloud run and what they may use.

    Attributes:
        root: where studies lie, unless --root says otherwise.
        warm_pool_minutes: for how long SageMaker keeps a machine after a job, for the next one; 0 keeps none.
        poll_seconds: the least time between two looks at the jobs' states.
        image_tag: of the image that `make push` recorded; empty where cloud.yaml names another.
    """

    bucket: str
    region: str
    role_arn: str
    image: str
    account: str | None = None
    root: str = ""
    warm_pool_minutes: int = 0
    poll_seconds: int = 10
    image_tag: str = ""

    @property
    def studies(self) -> str:
        """The s3:// prefix that studies lie below."""
        return self.root or f"s3://{self.bucket}/studies"


def load_cloud_settings() -> CloudSettings:
    """Returns the settings of cloud.yaml.

    Raises:
        ConfigError: if there is no such file, or a value of it is missing, unknown or wrong.
    """
    path = _file()
    pushed = _pushed_image()
    try:
        content = _checked(path)
    except OSError as error:
        why = "there is none" if isinstance(error, FileNotFoundError) else error.strerror
        raise ConfigError(
            f"{path}: the cloud backends need this file, with bucket, region and role_arn ({why}). "
            f"To try without an account: make rehearse GRID=grids/demo.yaml BACKEND=sagemaker"
        ) from error
    values: dict[str, Any] = {**({"image": pushed["image"]} if pushed else {}), **content}
    if missing := [name for name in ("bucket", "region", "role_arn", "image") if name not in values]:
        hint = " make push records the image." if "image" in missing else ""
        raise ConfigError(f"{path}: expected {', '.join(missing)} too.{hint}")
    image_region = values["image"].split(".")[3]
    if image_region != values["region"]:
        raise ConfigError(
            f"{path}: the image is in {image_region}, the jobs would run in {values['region']}, which SageMaker "
            f"refuses. Push it to {values['region']}, or mend region."
        )
    role_account = values["role_arn"].split(":")[4]
    if role_account != values.get("account", role_account):
        raise ConfigError(
            f"{path}: role_arn is of the account {role_account}, account says {values['account']}. A job's role must "
            f"be of its account."
        )
    is_pushed = bool(pushed) and values["image"] == pushed["image"]
    return CloudSettings(**values, image_tag=pushed["tag"] if is_pushed else "")


def named_place() -> tuple[str | None, str | None]:
    """Returns the region and the account that cloud.yaml names; None where there is no such file or word.

    Raises:
        ConfigError: if a value of the file is unknown or wrong.
    """
    if not FILE.exists() and not os.environ.get(VARIABLE):
        return None, None
    try:
        content = _checked(_file())
    except OSError as error:
        raise ConfigError(f"{_file()}: cannot be read ({error}).") from error
    return content.get("region"), content.get("account")


def wrong_account(found: str, expected: str) -> str:
    """Returns what is told where the credentials are of another account than cloud.yaml names."""
    return (
        f"the AWS credentials of this machine are of the account {found}, cloud.yaml expects {expected}. "
        f"Choose another AWS_PROFILE, or mend cloud.yaml."
    )


def _file() -> Path:
    return Path(os.environ.get(VARIABLE) or FILE)


def _checked(path: Path) -> dict[str, Any]:
    """Returns the settings of a file, each of which is known and of the right form; raises OSError as it comes."""
    try:
        content = load(path.read_text(encoding="utf-8"), str(path)).value
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected text in UTF-8 ({error}).") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected bucket: …, region: …, role_arn: …, image: …")
    known = [field.name for field in fields(CloudSettings) if field.name != "image_tag"]
    for name, value in content.items():
        if name not in known:
            raise ConfigError(f"{path}: {name}: no such setting.{nearest(str(name), known)}")
        _check(path, name, value)
    return content


def _check(path: Path, name: str, value: Any) -> None:
    if name in _RANGES:
        least, most = _RANGES[name]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError(f"{path}: {name}: expected a number from {least} to {most}, received {value!r:.40}.")
        return
    form, expected = _FORMS[name]
    if not isinstance(value, str) or not re.fullmatch(form, value):
        raise ConfigError(f"{path}: {name}: expected {expected}, received {value!r:.80}.")
    if name == "root":
        split_uri(value)


def _pushed_image() -> dict[str, str]:
    """Returns the image and the tag that `make push` recorded, or nothing."""
    try:
        noted = json.loads(PUSHED.read_bytes())
        _check(PUSHED, "image", noted["image"])
        return {"image": noted["image"], "tag": printable(str(noted.get("tag") or ""))}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError):  # as if nothing had been pushed
        return {}
