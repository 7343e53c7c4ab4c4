"""Loading TensorFlow without the lines that its C++ parts print before they can be told not to."""

from __future__ import annotations

import os
import sys
import tempfile

from artclf.errors import storage_error


def load_tensorflow() -> None:
    """Imports TensorFlow and Keras; what they print meanwhile is shown only if the import fails.

    Raises:
        StorageError: if there is no temporary folder that can be written to.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "tensorflow" in sys.modules:
        return
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise storage_error("write", os.environ.get("TMPDIR", "/tmp"), error) from error
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        try:
            import keras  # noqa: F401
            import tensorflow  # noqa: F401
        except BaseException:
            printed.seek(0)
            os.write(real, printed.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)
