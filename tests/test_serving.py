"""docs/serving.md is true: its blocks run, and its server answers."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import Capture, call, train
from helpers.launching import ROOT
from playwright.sync_api import Browser

from seqclf import load

PAGE = (ROOT / "docs" / "serving.md").read_text()
WALK = [[0.12, 9.81], [0.15, 9.79], [0.11, 9.80]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run that the page speaks of."""
    place = tmp_path_factory.mktemp("serving")
    lines = [
        f"{i},{t},{i % 2 + t / 10},{8 + t},{'ab'[i % 2]}"
        for i in range(60)
        for t in range(1 + i % 5)
    ]
    (place / "recordings.csv").write_text("\n".join(["recording,t,x,y,label", *lines]))
    run = train(place, place / "recordings.csv", "--id", "recording", "--time", "t")
    (place / "runs").mkdir()
    run.rename(place / "runs" / "mine")
    shutil.copytree(place / "runs" / "mine", place / "runs" / "one-way")
    return place


def test_the_page_is_true(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(place)
    assert call(capsys, "export", "runs/mine", "--out", "model.onnx")[0] == 0
    assert call(capsys, "export", "runs/one-way", "--out", "step.onnx", "--state")[0] == 0
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/serving.md", "exec"), names)
    sequences = [names["walk"], names["run"]]
    classifier = load("runs/mine")
    expected = classifier.predict_proba(sequences)
    np.testing.assert_allclose(names["probabilities"], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(names["found"], expected[:1], rtol=0, atol=1e-6)
    printed = capsys.readouterr().out
    assert str(classifier.predict(sequences).tolist()) in printed


@pytest.mark.slow  # Chromium compiles 14 MB
def test_the_blocks_of_the_browser_say_what_predict_says(
    place: Path, browser: Browser, capsys: Capture
) -> None:
    npm = shutil.which("npm")
    packages = npm and subprocess.run([npm, "root", "-g"], capture_output=True, text=True).stdout
    package = Path((packages or "").strip()) / "onnxruntime-web"
    if not package.is_dir():
        pytest.skip("no onnxruntime-web on this machine")
    blocks = [
        re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.M | re.S)[0] for kind in ("html", "js")
    ]
    for name, words in (("model", []), ("small", ["--int8"])):
        out = place / "web" / name
        shutil.copytree(package / "dist", out / "node_modules" / "onnxruntime-web" / "dist")
        assert (
            call(capsys, "export", place / "runs" / "mine", "--out", out / "model.onnx", *words)[0]
            == 0
        )
        page_text = (
            f"<link rel=icon href=data:,>{blocks[0]}<script type=module>{blocks[1]}</script>"
        )
        (out / "index.html").write_text(page_text)
    handler = partial(Quiet, directory=str(place / "web"))
    expected = load(place / "runs" / "mine").predict_proba([WALK, [[1.02, 8.11], [1.35, 8.79]]])
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, tolerance in (("model", 1e-6), ("small", 0.05)):
            page = browser.new_page()
            with page.expect_console_message() as message:
                page.goto(f"http://127.0.0.1:{server.server_address[1]}/{name}/index.html")
            found = np.array(json.loads(message.value.text)).reshape(expected.shape)
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
            page.close()
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_triton_would_read_its_config(place: Path, tmp_path: Path, capsys: Capture) -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    text_format = pytest.importorskip("google.protobuf.text_format")
    assert call(capsys, "export", place / "runs" / "mine", "--triton", tmp_path)[0] == 0
    text = (tmp_path / "mine" / "config.pbtxt").read_text()
    found = text_format.Parse(text, schema.ModelConfig())
    assert (found.name, found.backend, found.max_batch_size) == ("mine", "onnxruntime", 64)
    inputs = {one.name: (schema.DataType.Name(one.data_type), [*one.dims]) for one in found.input}
    assert inputs == {"values": ("TYPE_FP32", [-1, 2]), "lengths": ("TYPE_INT64", [1])}
    reshaped = {one.name: [*one.reshape.shape] for one in found.input if one.HasField("reshape")}
    assert reshaped == {"lengths": []}
    outputs = {one.name: ([*one.dims], one.label_filename) for one in found.output}
    assert outputs == {"probabilities": ([2], "labels.txt"), "logits": ([2], "")}
    assert found.WhichOneof("scheduling_choice") == "dynamic_batching"


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[str]:
    """The address of the page's server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), "runs/mine", port]
    with subprocess.Popen(command, cwd=place) as process:
        try:
            while process.poll() is None:
                with socket.socket() as trial:
                    if trial.connect_ex(("127.0.0.1", int(port))) == 0:
                        break
                time.sleep(0.05)
            assert process.poll() is None
            yield f"http://127.0.0.1:{port}/predict"
        finally:
            process.terminate()


def ask(address: str, body: bytes) -> tuple[int, str]:
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_server_says_what_predict_says(place: Path, server: str) -> None:
    sequences = [WALK, WALK[:2]]
    code, text = ask(server, json.dumps({"sequences": sequences}).encode())
    assert code == 200
    expected = load(place / "runs" / "mine").predict_proba(sequences)
    assert [list(one) for one in json.loads(text)] == [["a", "b"]] * 2
    found = [list(one.values()) for one in json.loads(text)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        ({"sequences": [WALK, [[1.0]]]}, 422, "X[1]: 1 feature a step"),
        ({"sequences": ["walk"]}, 422, "X[0]: a text, where numbers are expected"),
        ({"sequences": [[]]}, 422, "X[0]: an empty sequence"),
        ({"sequences": []}, 422, "too_short"),
        ({"sequences": "\ud800"}, 422, "list_type"),
        ({"sequences": [WALK] * 257}, 422, "too_long"),
        ({"sequences": [[[1.0, 2.0]] * 10_001]}, 422, "at most 10,000 steps"),
        ({"sequences": [{"x": 1}]}, 422, "X[0]: object, where numbers are expected"),
        ({"sequences": ["\ud800"]}, 422, "X[0]: a text, where numbers are expected"),
        ({}, 422, "missing"),
    ],
)
def test_the_server_refuses(server: str, content: object, code: int, reason: str) -> None:
    found, text = ask(server, json.dumps(content).encode())
    assert (found, reason in text) == (code, True), text


def test_the_server_refuses_a_large_body_unread(server: str) -> None:
    host, port = re.findall(r"//(.*):(\d+)", server)[0]
    for name, value in (("Content-Length", str(2**22 + 1)), ("Transfer-Encoding", "chunked")):
        connection = http.client.HTTPConnection(host, int(port))
        connection.putrequest("POST", "/predict")
        connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413
        assert answer.read().startswith(b"at most 4,194,304 bytes")
        connection.close()


def test_the_server_refuses_what_is_no_json(server: str) -> None:
    assert ask(server, b"{")[0] == 422
