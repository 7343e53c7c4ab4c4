"""The places where jobs run, each imported only when asked for."""

from __future__ import annotations

from artclf.errors import ConfigError, nearest
from jobs.spec import Backend

NAMES = ("local", "sagemaker", "sagemaker-local")


def open_backend(name: str) -> Backend:
    """Returns the backend of that name.

    Raises:
        ConfigError: if there is none.
    """
    if name == "local":
        from jobs.backends.local import LocalBackend

        return LocalBackend()
    if name == "sagemaker":
        from jobs.backends.sagemaker import SageMakerBackend
        from jobs.settings import load_cloud_settings

        return SageMakerBackend(load_cloud_settings())
    if name == "sagemaker-local":
        from jobs.backends.sagemaker_local import SageMakerLocalBackend

        return SageMakerLocalBackend()
    raise ConfigError(
        f"--backend {name}: no such backend in this version. Expected one of: {', '.join(NAMES)}.{nearest(name, NAMES)}"
    )
