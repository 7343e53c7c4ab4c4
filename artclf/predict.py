"""Pictures or URLs in, the likeliest classes out: ``python -m artclf.predict MODEL IMAGE|URL…``.

A model is used exactly as it was evaluated: the same decoder, the same view, the same averaging over crops.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artclf.command_line import positive, run_command
from artclf.errors import ArtclfError, ConfigError, StorageError, printable, storage_error
from artclf.quiet import load_tensorflow
from artclf.storage import local_path

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from artclf.config import DataConfig
    from artclf.data import Pixels
    from artclf.records import ClassInfo

URL_TIMEOUT_S = 30


@dataclass(frozen=True)
class Classifier:
    """A trained model with what it needs to be used.

    Attributes:
        model: a keras.Model.
        info: model.json.
        classes: in the order of its outputs.
        view: how a picture becomes its input.
    """

    model: Any
    info: dict[str, Any]
    classes: tuple[ClassInfo, ...]
    view: DataConfig

    def probabilities(self, pictures: Iterable[Pixels], batch_size: int = 32) -> Iterator[npt.NDArray[np.float64]]:
        """Yields (classes,) probabilities for each (H, W, 3) uint8 picture, those of its views averaged."""
        import itertools

        import numpy as np

        from artclf.data import evaluation_views

        pictures = iter(pictures)
        while batch := [evaluation_views(pixels, self.view) for pixels in itertools.islice(pictures, batch_size)]:
            views = self.model.predict_on_batch(np.concatenate(batch)).astype(np.float64)
            yield from views.reshape(len(batch), -1, len(self.classes)).mean(axis=1)


def load_classifier(where: str) -> Classifier:
    """Returns the model of a run directory, a study's ``best``, or a ``.keras`` file with model.json beside it.

    Raises:
        ConfigError: if there is no such model, or its parts do not belong together.
    """
    from artclf.config import DataConfig
    from artclf.records import ClassInfo

    model_file, info = find_model(where)
    try:
        classes = tuple(ClassInfo(str(c["slug"]), str(c["display"]), c.get("about") or {}) for c in info["classes"])
        view = DataConfig.model_validate(info["preprocessing"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"its model.json does not describe a whole model ({type(error).__name__})"
        raise ConfigError(f"{model_file}: {problem}.") from error
    model = _load_keras(model_file)
    if tuple(model.input_shape[1:]) != (view.image_size, view.image_size, 3):
        raise ConfigError(f"{model_file}: takes {model.input_shape[1:]}, model.json says {view.image_size} px.")
    if model.output_shape[-1] != len(classes):
        raise ConfigError(
            f"{model_file}: has {model.output_shape[-1]} outputs, model.json names {len(classes)} classes."
        )
    return Classifier(model, info, classes, view)


def find_model(where: str) -> tuple[Path, dict[str, Any]]:
    """Returns the .keras file that a name means, and its model.json, without loading it.

    Raises:
        ConfigError: if there is no such model.
    """
    from artclf.rundir import RunDir, read_json

    path = local_path(where)
    run = RunDir(path.parent if path.suffix == ".keras" else path)
    model_file = path if path.suffix == ".keras" else run.model
    info = read_json(run.model_json)
    if not model_file.is_file() or info is None:
        status = run.read_status() if path.is_dir() else None
        so_far = f" The run there is {status.state}." if status else ""
        raise ConfigError(
            f"{where}: expected a finished run, studies/NAME/best or a .keras file with model.json.{so_far}"
        )
    if not isinstance(info, dict) or info.get("format") != "artclf-model/1":
        raise ConfigError(f"{run.model_json}: expected a model description of format artclf-model/1.")
    return model_file, info


def _load_keras(path: Path) -> Any:
    load_tensorflow()
    import keras

    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises whatever its zip, JSON and HDF5 readers meet
        raise ConfigError(
            f"{path}: cannot be loaded as a Keras model: {str(error)[:200] or type(error).__name__}"
        ) from error


# -- fetching pictures ---------------------------------------------------------------------------


def fetch(name: str) -> bytes:
    """Returns the bytes of a file or of an http(s) URL, never more than the decoder accepts.

    Raises:
        ConfigError: if there is no such file, or the URL is refused.
        StorageError: if the file cannot be read or the server does not give all of it in time.
    """
    from artclf.images import MAX_BYTES

    if is_url(name):
        content = _download(name, MAX_BYTES + 1)
    else:
        check_file(name)
        try:
            with open(name, "rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise storage_error("read", name, error) from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{name}: expected at most {MAX_BYTES:,} bytes, received more.")
    return content


def is_url(name: str) -> bool:
    """Says whether a name is an address. Raises ConfigError for one that is neither http nor https."""
    scheme, separator, _ = name.partition("://")
    if separator and scheme.lower() not in ("http", "https"):
        raise ConfigError(f"{name}: expected a file, an http:// or an https:// address.")
    return bool(separator)


def check_file(name: str) -> None:
    """Raises ConfigError if there is no file of that name."""
    if os.path.isdir(name):
        raise ConfigError(f"{name}: expected a picture, received a folder. Name its pictures: {name.rstrip('/')}/*.jpg")
    if not os.path.exists(name):
        raise ConfigError(f"{name}: no such file.")


class _OnlyWeb(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to another http(s) address."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        is_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, limit: int) -> bytes:
    begun = time.monotonic()
    parts: list[bytes] = []
    received = 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "artclf"})
        with urllib.request.build_opener(_OnlyWeb).open(request, timeout=URL_TIMEOUT_S) as answer:
            while part := answer.read1(2**16):
                parts.append(part)
                received += len(part)
                if received >= limit:
                    break
                if time.monotonic() - begun > URL_TIMEOUT_S:
                    raise StorageError(f"{url}: not received whole in {URL_TIMEOUT_S} s.")
            expected = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        raise ConfigError(f"{url}: the server answered {error.code} {error.reason}.") from error
    except (ValueError, http.client.InvalidURL) as error:
        raise ConfigError(f"{url}: not an address that can be asked for: {error}.") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise StorageError(f"{url}: cannot be reached: {reason}.") from error
    content = b"".join(parts)
    if expected and expected.isdecimal() and received < min(int(expected), limit):
        raise StorageError(f"{url}: received {received:,} of {int(expected):,} bytes.")
    return content


# -- the command line ----------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """Runs ``python -m artclf.predict``; exit code 2 if any picture could not be used, after the others were."""
    arguments = _parser().parse_args(argv)
    from artclf.images import read_picture

    find_model(arguments.model)  # a slip is told before TensorFlow is loaded
    for name in arguments.pictures[:1]:
        if not is_url(name):
            check_file(name)
    classifier = load_classifier(arguments.model)
    results, failed = [], 0
    for name in arguments.pictures:
        try:
            pixels = read_picture(fetch(name)).pixels
        except ArtclfError as error:
            failed += 1
            print(f"error: {_located(name, error)}", file=sys.stderr)
            continue
        ranked = _ranked(classifier, next(classifier.probabilities([pixels])), arguments.top)
        results.append({"picture": name, "classes": ranked})
        if not arguments.json:
            _show(name, ranked)
    if arguments.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    return ConfigError.exit_code if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m artclf.predict", description="Tell the likeliest classes of pictures."
    )
    parser.add_argument("model", metavar="MODEL", help="a run directory, studies/NAME/best, or a .keras file")
    parser.add_argument("pictures", metavar="IMAGE|URL", nargs="+")
    parser.add_argument("--top", type=positive, default=5, metavar="K", help="how many classes to tell (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    return parser


def _ranked(classifier: Classifier, probabilities: npt.NDArray[np.float64], top: int) -> list[dict[str, Any]]:
    order = (-probabilities).argsort(kind="stable")[:top]
    return [
        {
            "class": classifier.classes[place].slug,
            "display": classifier.classes[place].display,
            "probability": round(float(probabilities[place]), 6),
        }
        for place in order
    ]


def _located(name: str, error: ArtclfError) -> str:
    text = str(error)
    return printable(text if name in text else f"{name}: {text}")


def _show(name: str, ranked: list[dict[str, Any]]) -> None:
    print(printable(name))
    for item in ranked:
        print(f"  {item['probability']:7.2%}  {printable(item['display'])}")


if __name__ == "__main__":
    run_command(main)
