"""The places where jobs run, each imported only when asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from artclf.errors import ConfigError, nearest
from jobs.spec import Backend

NAMES = ("local", "sagemaker", "sagemaker-local")
SLICE_S = 0.5
"""How long a Ctrl-C waits at most for the end of a sleep."""


def open_backend(name: str, check_stop: Callable[[], None] = lambda: None) -> Backend:
    """Returns the backend of that name.

    Args:
        check_stop: is called now and then while a service that takes no calls is waited for; raises to end that.

    Raises:
        ConfigError: if there is none.
    """
    if name == "local":
        from jobs.backends.local import LocalBackend

        return LocalBackend()
    if name == "sagemaker":
        from jobs.backends.sagemaker import SageMakerBackend
        from jobs.settings import load_cloud_settings

        return SageMakerBackend(load_cloud_settings(), sleep=partial(_sleep, check_stop))
    if name == "sagemaker-local":
        from jobs.backends.sagemaker_local import SageMakerLocalBackend

        return SageMakerLocalBackend()
    raise ConfigError(
        f"--backend {name}: no such backend in this version. Expected one of: {', '.join(NAMES)}.{nearest(name, NAMES)}"
    )


def _sleep(check_stop: Callable[[], None], seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0:
        time.sleep(min(left_s, SLICE_S))
        check_stop()
