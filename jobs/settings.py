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

from artclf.errors import ConfigError, nearest
from artclf.strict_yaml import load

FILE = Path("cloud.yaml")
VARIABLE = "ARTCLF_CLOUD"
PUSHED = Path(".artclf/image.json")
"""Where `make push` records the image that it pushed."""

_RANGES = {"warm_pool_minutes": (0, 60), "poll_seconds": (1, 3600)}
_FORMS = {
    "bucket": (r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]", "the name of a bucket"),
    "region": (r"[a-z]{2}(-[a-z]+)+-[0-9]", "a region, such as us-east-1"),
    "account": (r"[0-9]{12}", "an account's 12 digits, in quotes"),
    # Lengths and forms of CreateTrainingJob (SageMaker API reference, RoleArn and TrainingImage).
    "role_arn": (r"(?=.{20,2048}$)arn:aws[a-z\-]*:iam::[0-9]{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+", "the ARN of a role"),
    "image": (r"[\x21-\x7e]{1,255}", "an image, at best by digest: …@sha256:…"),
    "root": (r"s3://.+", "s3://BUCKET/PREFIX"),
}


@dataclass(frozen=True)
class CloudSettings:
    """Where jobs of the cloud run and what they may use.

    Attributes:
        root: where studies lie, unless --root says otherwise.
        warm_pool_minutes: for how long SageMaker keeps a machine after a job, for the next one; 0 keeps none.
        poll_seconds: the least time between two looks at the jobs' states.
    """

    bucket: str
    region: str
    role_arn: str
    image: str
    account: str | None = None
    root: str = ""
    warm_pool_minutes: int = 0
    poll_seconds: int = 10

    @property
    def studies(self) -> str:
        """The s3:// prefix that studies lie below."""
        return self.root or f"s3://{self.bucket}/studies"


def load_cloud_settings() -> CloudSettings:
    """Returns the settings of cloud.yaml.

    Raises:
        ConfigError: if there is no such file, or a value of it is missing, unknown or wrong.
    """
    path = Path(os.environ.get(VARIABLE) or FILE)
    try:
        content = load(path.read_text(encoding="utf-8"), str(path)).value
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: the cloud backends need this file, with bucket, region, role_arn and image ({error}). "
            f"To try without an account: make rehearse GRID=grids/demo.yaml BACKEND=sagemaker"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected bucket: …, region: …, role_arn: …, image: …")
    values: dict[str, Any] = {**_pushed_image(), **content}
    known = [field.name for field in fields(CloudSettings)]
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{path}: {name}: no such setting.{nearest(str(name), known)}")
        _check(path, name, value)
    if missing := [name for name in ("bucket", "region", "role_arn", "image") if name not in values]:
        raise ConfigError(f"{path}: expected {', '.join(missing)} too.")
    return CloudSettings(**values)


def _check(path: Path, name: str, value: Any) -> None:
    if name in _RANGES:
        least, most = _RANGES[name]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError(f"{path}: {name}: expected a number from {least} to {most}, received {value!r:.40}.")
        return
    form, expected = _FORMS[name]
    if not isinstance(value, str) or not re.fullmatch(form, value):
        raise ConfigError(f"{path}: {name}: expected {expected}, received {value!r:.80}.")


def _pushed_image() -> dict[str, str]:
    try:
        image = json.loads(PUSHED.read_bytes())["image"]
        _check(PUSHED, "image", image)
        return {"image": image}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError):  # as if nothing had been pushed
        return {}
