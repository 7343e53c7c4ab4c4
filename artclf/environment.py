"""What a run ran on: environment.json."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import artclf
from artclf.records import Dataset


def describe_environment(dataset: Dataset) -> dict[str, Any]:
    """Returns device, memory, cores, driver and versions of this machine, and which data, for environment.json.

    What the machine does not tell is null. ARTCLF_IMAGE_DIGEST, ARTCLF_COMMIT and ARTCLF_INSTANCE
    say what only the launcher knows.
    """
    import keras
    import tensorflow as tf

    gpus = [
        str(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name))
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    cpu = cpu_name()
    return {
        "device": gpus[0] if gpus else cpu,
        "gpus": gpus,
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "driver": _first_match("/proc/driver/nvidia/version", r"Kernel Module\s+(\S+)"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "artclf": artclf.__version__,
        "image_digest": os.environ.get("ARTCLF_IMAGE_DIGEST"),
        "commit": os.environ.get("ARTCLF_COMMIT") or _commit(),
        "data_digest": dataset.digest,
        "data": dataset.summary(),
        "instance": os.environ.get("ARTCLF_INSTANCE"),
    }


def cpu_name() -> str:
    """Returns the processor's own name."""
    return _first_match("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.processor() or platform.machine()


def _first_match(file: str, pattern: str) -> str | None:
    try:
        match = re.search(pattern, Path(file).read_text())
    except OSError:
        return None
    return match[1].strip() if match else None


def _commit() -> str | None:
    """Returns the commit of the checkout that this code lies in, if it lies in one."""
    home = Path(artclf.__file__).parent.parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(home), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
