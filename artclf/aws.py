"""What every caller of AWS shares: a session with this machine's credentials, what errors say, and how long to try.

boto3 is imported when a session is made.
"""

from __future__ import annotations

import logging
import math
import os
import random
import re
from collections.abc import Callable
from typing import Any

from artclf.errors import ConfigError, printable, without_login

log = logging.getLogger("artclf")

FIRST_BUDGET_S = 20.0
"""For so long a service that never answered is tried: it may well be the wrong one, and somebody waits."""
TOLD_AFTER_S = 30.0
"""After so long in vain it is said what is waited for."""
NOT_IMPLEMENTED = 501  # of look-alikes: what is not there does not come by waiting
_ODD_HEADER = "Invalid header value"  # of http.client; the value, a token, follows
_CREDENTIALS = (
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "TokenRefreshRequired",
    "RequestExpired",
    "InvalidAccessKeyId",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
)
_BUSY = (
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
)


def aws_session() -> Any:
    """Returns a new boto3 session with whatever credentials this machine has now.

    Raises:
        ConfigError: if it has none, or its settings cannot be used.
    """
    import boto3
    import botocore.exceptions

    for name in ("auth", "endpoint", "parsers"):  # at DEBUG they print requests and answers, session tokens in them
        logging.getLogger(f"botocore.{name}").setLevel(logging.INFO)
    try:
        session = boto3.session.Session()
        if session.get_credentials() is None:
            raise ConfigError(
                "no AWS credentials found. Log in (aws sso login), or set AWS_PROFILE or AWS_ACCESS_KEY_ID."
            )
        if not session.region_name:  # S3 finds the bucket's region by itself
            session = boto3.session.Session(region_name=named_region() or "us-east-1")
    except (*_UNUSABLE, botocore.exceptions.BotoCoreError) as error:
        raise _unusable(error) from error
    return session


def client(session: Any, service: str, **options: Any) -> Any:
    """Returns a client of a service. Raises ConfigError if this machine's settings allow none."""
    import botocore.exceptions

    try:
        return session.client(service, **options)
    except (*_UNUSABLE, botocore.exceptions.BotoCoreError) as error:
        raise _unusable(error) from error


_UNUSABLE = (ValueError, AttributeError, TypeError, KeyError, OSError)
"""What botocore raises besides its own errors where settings or a program that gives credentials are odd."""


def _unusable(error: Exception) -> ConfigError:
    return ConfigError(f"the AWS settings of this machine cannot be used: {reason(error)}.")


def named_region() -> str | None:
    """Returns the region that this machine's settings name, if they name one."""
    import boto3

    # SageMaker's containers and AWS's other tools have AWS_REGION, which boto3 does not look at.
    return boto3.session.Session().region_name or os.environ.get("AWS_REGION") or None


def response(error: Exception) -> dict[str, Any]:
    """Returns the answer that refused a call, empty if there was none."""
    answer = getattr(error, "response", None)
    return answer if isinstance(answer, dict) else {}


def code(error: Exception) -> str:
    """Returns the service's word for a refusal, empty if there was no answer."""
    return str(response(error).get("Error", {}).get("Code", ""))


def status(error: Exception) -> int:
    """Returns the HTTP status of a refusal, 0 if there was no answer."""
    return int(response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def message(error: Exception) -> str:
    """Returns what went wrong in one line. What follows the first may quote our request, with its session token."""
    told = response(error).get("Error", {})
    lines = str(told.get("Message") or error).strip().splitlines()
    return printable(_without_secrets(" ".join(lines[0].split())))[:400] if lines else type(error).__name__


def _without_secrets(text: str) -> str:
    """Returns a text without what may be secret in it: an odd header, a program's own words, logins in URLs."""
    text = re.sub(rf"({_ODD_HEADER}).*", r"\1 (a line break in a credential?)", text)
    text = re.sub(r"(custom-process).*", r"\1", text)
    text = without_login(text)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        secret = os.environ.get(name, "").strip()
        text = text.replace(secret, "…") if len(secret) >= 8 else text
    return text


def reason(error: Exception) -> str:
    """Returns the service's word for what went wrong, and its message without a full stop, in one line."""
    told = response(error).get("Error", {})
    word = f"{told['Code']}: " if told.get("Code") else ""
    return f"{word}{message(error) if told.get('Message') or not word else ''}".rstrip(".: ")


def lacks_credentials(error: Exception) -> bool:
    """Says whether a call was not made since this machine has no credentials, or they cannot be renewed."""
    from botocore import exceptions as of

    missing = (of.NoCredentialsError, of.PartialCredentialsError, of.CredentialRetrievalError)
    expired = (of.TokenRetrievalError, of.SSOError, of.LoginError)
    return isinstance(error, (*missing, *expired))


def is_unanswered(error: Exception) -> bool:
    """Says whether no answer came, or not the whole of it: the call may have been carried out."""
    from botocore.exceptions import ConnectionError as NotReached
    from botocore.exceptions import HTTPClientError

    return isinstance(error, HTTPClientError | NotReached | ConnectionError) and _ODD_HEADER not in str(error)


def is_about_credentials(error: Exception) -> bool:
    """Says whether a call failed since this machine has no credentials, or they are not, or no longer, good."""
    return lacks_credentials(error) or code(error) in _CREDENTIALS or _ODD_HEADER in str(error)


def is_passing(error: Exception) -> bool:
    """Says whether no answer came, or one that says to try again: the call may have been carried out."""
    told = status(error)
    is_busy = (told >= 500 and told != NOT_IMPLEMENTED) or told in (408, 429) or code(error) in _BUSY
    return is_busy or is_unanswered(error)


class Patience:
    """How long one call goes on trying: a budget of time, measured from its first failure or last progress.

    Args:
        first_pause_s, longest_pause_s: between two tries; doubled each time, and shortened by chance.
        sleep, clock: tests pass their own.
    """

    def __init__(
        self,
        first_pause_s: float,
        longest_pause_s: float,
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self._first_pause_s, self._longest_pause_s = first_pause_s, longest_pause_s
        self._sleep, self._clock = sleep, clock
        self.progressed()

    @property
    def was_needed(self) -> bool:
        """Whether anything failed so far."""
        return self._began is not None

    def progressed(self) -> None:
        """Takes note that the call got somewhere: the budget begins anew with the next failure."""
        self._began: float | None = None
        self._until = math.inf
        self._pause_s, self._is_told = self._first_pause_s, False

    def wait(self, budget_s: float, why: str) -> bool:
        """Waits for the next try and says whether there is one; ``why`` is told if that takes long.

        Args:
            budget_s: counts at the first failure alone.
        """
        now = self._clock()
        if self._began is None:
            self._began, self._until = now, now + budget_s
        if now >= self._until:
            return False
        if not self._is_told and now - self._began >= TOLD_AFTER_S:
            self._is_told = True
            log.warning("%s; tried again for up to %.0f min more", why, (self._until - now) / 60)
        pause_s = random.uniform(0.5, 1) * self._pause_s  # apart from others that failed in the same moment
        self._pause_s = min(self._pause_s * 2, self._longest_pause_s)
        self._sleep(min(pause_s, self._until - now))
        return True
