"""The processes of this machine and their command lines, which tell who is at work on a run."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


def commands() -> Iterator[tuple[int, str]]:
    """Yields the process id and command line of every process; a blank follows each of its words."""
    if Path("/proc/self/cmdline").exists():
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):  # it ended meanwhile
                    yield int(entry.name), os.fsdecode((entry / "cmdline").read_bytes().replace(b"\0", b" "))
        return
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,command="], capture_output=True, check=False).stdout
    for line in os.fsdecode(listed).splitlines():
        process, _, text = line.strip().partition(" ")
        yield int(process), f"{text} "
