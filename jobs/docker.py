"""Docker's client on this machine, and the labels of our images (container/Dockerfile)."""

from __future__ import annotations

import subprocess

from jobs.spec import BackendError

REVISION = "org.opencontainers.image.revision"
"""Label: the commit that an image was built from."""
TENSORFLOW = "artclf.tensorflow"
"""Label: the package of TensorFlow in it."""


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Returns the ended client. Raises BackendError if there is none."""
    try:
        return subprocess.run(
            ["docker", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise BackendError(f"docker cannot be started: {error.strerror}.") from error
