"""`seqclf push` and `seqclf.load("hf://...")`, against a stand-in of the Hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.commands import Capture, call, refusal
from helpers.launching import launch
from helpers.training import train_tiny
from huggingface_hub import ModelCard

import seqclf
from seqclf import UserError, hub
from seqclf.run.weights import find_weights

COMMIT = "a" * 40
LOAD = """
import sys, seqclf
classifier = seqclf.load(sys.argv[1])
print(classifier.title, file=sys.stderr)
print(classifier.predict_proba([[[9] * 8] * 8]).tolist())
"""


class StandIn(ThreadingHTTPServer):
    """Holds the files of one model, and what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.status = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path))
        self.server.tokens.add(self.headers.get("authorization"))
        if self.server.status != 200:
            return self._send({"error": "no"}, status=self.server.status)
        if "/me/private" in path:
            return self._send({"error": "no"}, status=401)
        if "/revision/wrong" in path:
            self.send_response(404)
            self.send_header("x-error-code", "RevisionNotFound")
            return self._end("application/json", b"{}")
        if "/me/empty" in path:
            self.server.files = {"README.md": b"# Something else", "model.bin": b"weights"}
        if "/me/damaged" in path:
            self.server.files = dict.fromkeys(hub.FILES, b"{}")
        if path == "/api/repos/create":
            return self._send({"url": f"{self.server.url}/me/digits"})
        if path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [{"uploadMode": "regular", "shouldIgnore": False} | one for one in files]
            return self._send({"files": modes})
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            url = f"{self.server.url}/me/digits/commit/{COMMIT}"
            return self._send({"success": True, "commitOid": COMMIT, "commitUrl": url})
        if "/resolve/" in path:
            return self._send_file(self.server.files[path.rpartition("/")[2]])
        if "/tree/" in path:
            return self._send(
                [
                    {"type": "file", "path": name, "size": len(one), "oid": _sha(one)}
                    for name, one in self.server.files.items()
                ]
            )
        if "/revision/" in path or path == "/api/models/me/digits":
            names = [{"rfilename": name} for name in self.server.files]
            return self._send({"id": "me/digits", "sha": COMMIT, "siblings": names})
        return self._send({}, status=404)

    do_GET = do_POST = do_HEAD = _answer  # noqa: N815

    def _send(self, answer: Any, status: int = 200) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self._end("application/json", content)

    def _send_file(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("etag", f'"{_sha(content)}"')
        self.send_header("x-repo-commit", COMMIT)
        self._end("application/octet-stream", content)

    def _end(self, kind: str, content: bytes) -> None:
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _sha(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def server() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("hub") / "run"
    assert train_tiny(run, {"train.steps": 10, "data.root": "/home/somebody/data"}) == 0
    return run


def test_what_was_pushed_is_loaded(run: Path, server: StandIn, tmp_path: Path) -> None:
    place = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_secret"}
    done = launch("python", "-m", "seqclf", "push", run, "me/digits", **place)
    assert done.returncode == 0, done.stderr
    assert f"sent        {server.url}/me/digits" in done.stdout
    assert {*server.files} == {*hub.FILES}
    assert server.files["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    assert server.tokens - {None} == {"Bearer hf_secret"}
    assert not any(b"hf_secret" in content for content in server.files.values())
    server.asked.clear()
    loaded = launch("python", "-c", LOAD, "hf://me/digits", **place)
    assert loaded.returncode == 0, loaded.stderr
    expected = seqclf.load(run).predict_proba([[[9] * 8] * 8])
    assert np.allclose(json.loads(loaded.stdout), expected)
    assert "hf://me/digits: 666 parameters" in loaded.stderr
    assert {path.rpartition("/")[2] for _, path in server.asked} >= {"model.safetensors"}


LOAD_ALL = """
import sys, seqclf
for name in sys.argv[1:]:
    try:
        print(name, seqclf.load("hf://me/" + name).classes_.tolist())
    except seqclf.UserError as error:
        print(name, error)
"""


@pytest.mark.slow
def test_what_is_no_model_is_named_and_nothing_else_is_fetched(
    run: Path, server: StandIn, tmp_path: Path
) -> None:
    model = {name: (run / "model" / name).read_bytes() for name in hub.FILES}
    others = ("pickle.bin", "pytorch_model.bin", "../evil.json", "sub/config.json", "seqclf.py")
    server.files = {**dict.fromkeys(others, b"evil"), **model}
    place = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    done = launch("python", "-c", LOAD_ALL, "digits", **place)
    assert done.stdout.startswith("digits ['0', '1', '2'"), done.stderr
    fetched = {path.rpartition("/resolve/")[2] for _, path in server.asked if "/resolve/" in path}
    assert {one.partition("/")[2] for one in fetched} == {*hub.FILES}
    assert not [*tmp_path.rglob("evil*"), *tmp_path.rglob("*.bin"), *tmp_path.rglob("*.py")]
    names = ("digits@wrong", "private", "empty", "damaged")
    done = launch("python", "-c", LOAD_ALL, *names, **place)
    lines = done.stdout.splitlines()
    wrong, private, empty, damaged = (
        next(line for line in lines if line.startswith(name)) for name in names
    )
    assert str(Path(tempfile.gettempdir())) not in done.stdout
    assert wrong.startswith("digits@wrong hf://me/digits@wrong: cannot load it (")
    assert private.startswith("private hf://me/private: cannot load it (")
    assert "are you logged in (hf auth login)?" in private
    assert empty.startswith("empty hf://me/empty: no model of seqclf, which has config.json and ")
    assert damaged.startswith("damaged hf://me/damaged/config.json: ")
    # Without a network, what was once downloaded loads, and all else is named.
    place["HF_HUB_OFFLINE"] = "1"
    done = launch("python", "-c", LOAD_ALL, "digits", "other", **place)
    here, gone = done.stdout.splitlines()
    assert here.startswith("digits ['0', '1', '2'")
    assert gone.startswith("other hf://me/other: cannot load it (")


@pytest.mark.slow
def test_a_hub_that_refuses_is_a_users_error(run: Path, server: StandIn, tmp_path: Path) -> None:
    place = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_secret"}
    for status in (401, 403, 404):
        server.status = status
        for words in (("-m", "seqclf", "push", run, "me/digits"), ("-c", LOAD, "hf://me/digits")):
            done = launch("python", *words, **place)
            assert done.returncode == (2 if words[0] == "-m" else 1)
            assert "is the name right, the network there, and are you logged in" in done.stderr
            assert done.stderr.count("Traceback") == (words[0] == "-c")
    place["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody listens
    done = launch("python", "-m", "seqclf", "push", run, "me/digits", **place)
    assert done.returncode == 2
    assert "hf://me/digits: cannot push it" in done.stderr


def test_a_dry_run_writes_the_folder_and_sends_nothing(
    run: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    code, said, _ = call(capsys, "push", run, "me/digits", "--dry-run", out)
    assert code == 0
    assert "nothing was sent" in said
    assert "note: data.root: left out of card.json, as a place on this machine" in said
    assert "note: no licence: write one into " in said
    assert {file.name for file in out.iterdir()} == {*hub.FILES}
    card = json.loads((out / "card.json").read_text())
    assert card["settings"]["data.root"] is None
    assert "/home/somebody" in (run / "model" / "card.json").read_text()
    assert not any("/home/somebody" in file.read_text("latin-1") for file in out.iterdir())
    readme = (out / "README.md").read_text()
    _, front, text = readme.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "seqclf", "tags": list(hub.TAGS)}
    assert 'seqclf.load("hf://me/digits")' in text
    assert len(seqclf.load(out).classes_) == 10
    said = refusal(capsys, "push", run, "me/digits", "--dry-run", out)
    assert said == f"error: {out}: not empty; name another folder\n"


def test_a_licence_stands_in_the_card_as_in_the_lines_of_the_hub(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "model", tmp_path / "model")
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    (tmp_path / "model" / "card.json").write_text(json.dumps(card | {"licence": "Apache-2.0"}))
    notes = hub.gather(tmp_path / "model", tmp_path / "out", hub.parse_name("me/x"))
    assert not [note for note in notes if "licence" in note]
    page = ModelCard.load(tmp_path / "out" / "README.md")
    assert page.data.to_dict() == {
        "library_name": "seqclf",
        "license": "apache-2.0",
        "tags": ["lstm", "sequence-classification"],
    }
    assert "- Licence: Apache-2.0\n" in page.text
    assert "not stated" not in page.text
    (tmp_path / "model" / "card.json").write_text(json.dumps(card | {"licence": ["mit"]}))
    with pytest.raises(UserError, match=r"licence \['mit'\]: expected a text such as mit"):
        hub.gather(tmp_path / "model", tmp_path / "out2", hub.parse_name("me/x"))


def test_a_model_without_a_card_has_a_readme_and_a_licence_is_told(
    run: Path, tmp_path: Path
) -> None:
    seqclf.load(run).save(tmp_path / "bare")
    notes = hub.gather(tmp_path / "bare", tmp_path / "a", hub.parse_name("me/x"))
    assert notes[0] == "no card: the model was not saved by a run"
    assert (tmp_path / "a" / "README.md").read_text().endswith("# A model of seqclf\n")
    (tmp_path / "bare" / "card.json").write_text('{"licence": "mit: \\"or\\" so"}')
    assert hub.gather(tmp_path / "bare", tmp_path / "b", hub.parse_name("me/x")) == []
    text = (tmp_path / "b" / "README.md").read_text()
    front = text.split("---\n")[1]
    assert yaml.safe_load(front)["license"] == 'mit: "or" so'


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("card.json", "[]", "damaged (not a JSON object)"),
        ("card.json", "{", "missing or damaged (Expecting"),
        ("card.json", "[" * 99_999, "missing or damaged (maximum recursion"),
        ("card.json", '{"settings": null}', "damaged: settings: not a JSON object"),
        ("card.json", '{"licence": 5}', "licence 5: expected a text such as mit"),
        ("README.md", "\xff", "damaged: not UTF-8"),
        ("model.safetensors", "half", "not a safetensors file"),
    ],
)
def test_what_is_damaged_is_named_and_not_pushed(
    name: str, content: str, problem: str, run: Path, tmp_path: Path, capsys: Capture
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(run / "model", model)
    (model / name).write_text(content, encoding="latin-1")
    said = refusal(capsys, "push", model, "me/x", "--dry-run", out)
    assert said.startswith(f"error: {model / name}: {problem}")
    assert not out.exists()


@pytest.mark.parametrize("name", ["digits", "me/", "a/b/c", "../x", "me/x y", "https://x/y", ""])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no name of the Hugging Face Hub, which is ORG/NAME"):
        hub.parse_name(name)


def test_names_may_have_a_revision() -> None:
    assert hub.parse_name("hf://me/x@v1.0") == ("me/x", "v1.0")
    assert hub.parse_name("me/x") == ("me/x", None)


def test_a_path_is_never_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "fetch", lambda *_: pytest.fail("asked the Hub"))
    with pytest.raises(UserError, match="neither a trained model nor a whole checkpoint"):
        seqclf.load("me/digits")
    with pytest.raises(UserError, match=r'seqclf.load\("hf://me/digits"\).save\("model"\)'):
        find_weights(Path("hf://me/digits"))


def test_only_a_result_is_pushed(run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert train_tiny(tmp_path / "run", {"train.steps": 10, "checkpoint.every": 5}) == 0
    (tmp_path / "run" / "model" / "model.safetensors").unlink()
    said = refusal(capsys, "push", tmp_path / "run", "me/x", "--dry-run", tmp_path / "out")
    assert "no result yet, only a checkpoint of step 10; let the run finish" in said
