"""artclf.quiet: what may go wrong before TensorFlow is there."""

from __future__ import annotations

import sys
import tempfile

import pytest

from artclf.errors import StorageError
from artclf.quiet import load_tensorflow


def test_a_machine_without_a_temporary_folder_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
    with pytest.raises(StorageError, match=r"cannot write: No usable temporary directory"):
        load_tensorflow()
