"""Using a trained model: files, URLs, and what is no picture."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from artclf.config import TrainConfig
from artclf.errors import ConfigError, StorageError
from artclf.interrupt import StopRequest
from artclf.predict import fetch, main
from artclf.records import Dataset
from artclf.rundir import RunDir
from artclf.training import train


@pytest.fixture(scope="module")
def model(tiny_set: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a finished run that tells the stripes apart."""
    run = RunDir(tmp_path_factory.mktemp("model") / "run")
    settings = {"model.name": "cnn_tiny", "data.image_size": 32, "train.epochs": 10, "train.learning_rate": 2e-3}
    train(run, tiny_set, TrainConfig.from_settings(settings), StopRequest())
    return run.path


@pytest.fixture
def server(tiny_pictures: Path) -> Iterator[str]:
    """Returns the address of a web server of this machine that serves the pictures."""

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tiny_pictures))

        def do_GET(self) -> None:
            if self.path == "/short.jpg":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"abc")
            elif self.path == "/elsewhere.jpg":
                self.send_response(302)
                self.send_header("Location", "ftp://127.0.0.1/x.jpg")
                self.end_headers()
            elif self.path == "/noise.jpg":
                self.wfile.write(b"what?\r\n\r\n")
            else:
                super().do_GET()

        def log_message(self, *args: Any) -> None:
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    thread.join()
    serving.server_close()


def predicted(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_file_and_a_url_of_one_picture_get_the_same_probabilities(
    model: Path, tiny_pictures: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny_pictures / "across" / "across_3.png"
    results = predicted(capsys, str(model), str(file), f"{server}/across/across_3.png")
    assert results[0]["classes"] == results[1]["classes"]
    assert results[0]["classes"][0]["class"] == "across"
    assert sum(item["probability"] for item in results[0]["classes"]) == pytest.approx(1, abs=1e-5)


def test_a_model_can_be_named_by_its_keras_file_and_top_limits_the_answer(
    model: Path, tiny_pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(model / "model.keras"), str(tiny_pictures / "down" / "down_1.png"), "--top", "1"]) == 0
    name, answer = capsys.readouterr().out.splitlines()
    assert name.endswith("down_1.png")
    assert answer.split("%")[1].strip() == "down"


def test_a_file_that_is_no_picture_is_named_and_the_others_are_predicted(
    model: Path, tiny_pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.jpg"
    page.write_text("<html>not found</html>")
    assert main([str(model), str(page), str(tiny_pictures / "down" / "down_1.png")]) == 2
    printed = capsys.readouterr()
    assert "page.jpg" in printed.err and "down_1.png" in printed.out


@pytest.mark.parametrize("name", ["ftp://127.0.0.1/x.jpg", "no/such/file.jpg", "."])
def test_what_cannot_be_fetched_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no such|expected"):
        fetch(name)


def test_a_server_that_does_not_answer_or_has_no_such_picture_is_told_apart(server: str) -> None:
    with pytest.raises(ConfigError, match="answered 404"):
        fetch(f"{server}/none.jpg")
    with pytest.raises(StorageError, match="cannot be reached"):
        fetch("http://127.0.0.1:9/x.jpg")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:abc/",
        "http://[::1/",
        "http://a b/",
        "http://h\u00e9/\u00e9",
        f"http://{'x' * 300}/",
        "http://",
    ],
)
def test_an_address_that_is_none_is_refused_in_one_line(url: str) -> None:
    with pytest.raises((ConfigError, StorageError), match=r"not an address|cannot be reached"):
        fetch(url)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("short.jpg", "received 3 of 1,000 bytes|cannot be reached"),
        ("elsewhere.jpg", "expected a file, an http"),
        ("noise.jpg", "cannot be reached"),
    ],
)
def test_an_answer_that_is_cut_elsewhere_or_noise_is_told(server: str, page: str, said: str) -> None:
    with pytest.raises((ConfigError, StorageError), match=said):
        fetch(f"{server}/{page}")


def test_a_server_that_drips_is_given_up(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artclf.predict.URL_TIMEOUT_S", 1e-9)
    with pytest.raises(StorageError, match=r"cannot be reached|not received whole"):
        fetch(f"{server}/across/across_3.png")


@pytest.mark.parametrize(
    "damage",
    [
        {"classes": None},
        {"classes": ["x"]},
        {"classes": []},
        {"preprocessing": {"view": "resize", "image_size": -3}},
        {"preprocessing": {"view": "resize", "image_size": 24}},
        {"format": "other"},
    ],
    ids=str,
)
def test_a_model_description_that_does_not_fit_is_refused(model: Path, tmp_path: Path, damage: dict[str, Any]) -> None:
    import shutil

    shutil.copy(model / "model.keras", tmp_path)
    info = json.loads((model / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**info, **damage}))
    with pytest.raises(ConfigError, match=r"model\.(json|keras)"):
        main([str(tmp_path), str(model / "model.json")])


def test_a_run_without_a_model_says_how_it_stands(tmp_path: Path) -> None:
    from artclf.rundir import RunStatus

    RunDir(tmp_path).write_status(RunStatus("interrupted"))
    with pytest.raises(ConfigError, match="The run there is interrupted"):
        main([str(tmp_path), "x.jpg"])
