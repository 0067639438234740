"""As much of a W&B server as its client needs: it keeps, in memory, the runs that it is sent."""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = {"id": "e", "name": "me"}


@dataclass
class Received:
    """What a run's file stream has brought: its rows by number, and how it ended."""

    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)  # the numbers, as they came
    summary: dict[str, Any] = field(default_factory=dict)
    config: str = "{}"
    exit_code: int | None = None
    preempting: bool = False


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, Received] = defaultdict(Received)
        self.sweep: dict[str, Any] = {}  # what wandb sweep would have sent: its YAML
        self.silent = threading.Event()  # while it is set no file stream is answered
        self.trials: list[dict[str, Any]] = []  # settings of each trial to come
        self.requests: list[str] = []  # the path of each, in the order that they came

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client that is killed resets its connections."""

    def take(self, run_id: str, message: dict[str, Any]) -> None:
        run = self.runs[run_id]
        for name, part in (message.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                numbers = range(part["offset"], part["offset"] + len(lines))
                run.sent += numbers
                run.rows |= dict(zip(numbers, lines, strict=True))
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        if message.get("complete"):
            run.exit_code = message["exitcode"]
        run.preempting = run.preempting or bool(message.get("preempting"))

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        name = str(given.get("name") or "").removeprefix("id-")
        if operation == "Viewer":
            viewer: dict[str, Any] = {
                "id": "u",
                "entity": "me",
                "username": "me",
                "email": "",
                "flags": "{}",
            }
            return {"viewer": viewer | {"teams": {"edges": []}}}
        if operation == "RunResumeStatus":
            return {"model": {"id": "p", "name": "p", "entity": ENTITY, "bucket": self.tail(name)}}
        if operation == "UpsertBucket":
            name = name or str(given["id"]).removeprefix("id-")
            is_new, run = name not in self.runs, self.runs[name]
            run.config = given.get("config") or run.config
            about = {
                "id": f"id-{name}",
                "name": name,
                "displayName": given.get("displayName") or name,
                "config": "{}",
                "project": {"id": "p", "name": given.get("project") or "p", "entity": ENTITY},
                "historyLineCount": len(run.rows),
            }
            return {"upsertBucket": {"bucket": about, "inserted": is_new}}
        if operation == "CreateRunFiles":
            urls = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in given["files"]]
            made: dict[str, Any] = {
                "runID": f"id-{given['run']}",
                "uploadHeaders": [],
                "files": urls,
            }
            return {"createRunFiles": made}
        if operation == "CreateArtifact":
            sequence = {"id": "s", "latestArtifact": None}
            made = {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}
            return {"createArtifact": {"artifact": made}}
        if operation == "SweepWithRuns":
            about = {"id": "w", "name": given["sweep"], "config": json.dumps(self.sweep)}
            return {"project": {"sweep": about | {"runs": {"edges": []}}}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "agent"}}}
        if operation == "Heartbeat":
            commands = self.commands(json.loads(given["runState"]))
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        return {}

    def commands(self, running: dict[str, bool]) -> list[dict[str, Any]]:
        """Wait for the trial that runs, else the next one, or to leave."""
        if any(running.values()):
            return []
        if not self.trials:
            return [{"type": "exit"}]
        arguments = {name: {"value": value} for name, value in self.trials.pop(0).items()}
        run = {"type": "run", "run_id": f"trial{len(self.trials)}", "args": arguments}
        return [run | {"program": self.sweep["program"]}]

    def tail(self, name: str) -> dict[str, Any] | None:
        """What the client goes on from."""
        if name not in self.runs:
            return None
        run = self.runs[name]
        last = [json.dumps(run.rows[max(run.rows)])] if run.rows else []
        return {
            "id": f"id-{name}",
            "name": name,
            "summaryMetrics": json.dumps(run.summary),
            "displayName": name,
            "logLineCount": 0,
            "historyLineCount": len(run.rows),
            "eventsLineCount": 0,
            "historyTail": json.dumps(last),
            "eventsTail": "[]",
            "config": run.config,
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def parse_request(self) -> bool:
        is_whole = super().parse_request()
        self.server.requests.append(getattr(self, "path", ""))
        return is_whole

    def reply(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.reply({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"\b(?:query|mutation)\s+(\w+)", asked["query"])
            assert operation is not None
            given = asked.get("variables") or {}
            answer = {"data": self.server.answer(operation[1], given)}
        elif self.path.endswith("/file_stream"):
            if self.server.silent.is_set():
                self.close_connection = True
                time.sleep(1)
                return
            self.server.take(self.path.split("/")[-2], json.loads(body))
        self.reply(answer)


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server in a thread of this process."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        yield server
        server.shutdown()
