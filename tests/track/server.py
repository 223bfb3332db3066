"""A stand-in for W&B's server on this machine, well or badly behaved; what it gets from the real client is kept."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Moods = str  # well, hangs, slow, or a status such as 500


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mood: Moods = "well"
        self.ended = threading.Event()
        self.asked: list[str] = []  # what was asked for
        self.runs: dict[str, dict[str, Any]] = {}  # by id
        self.rows: dict[str, dict[int, dict[str, Any]]] = {}  # by id: line of the history -> what it says

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_GET

    def log_message(self, *words: object) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.path)
        mood = self.server.mood
        if mood == "hangs":
            self.server.ended.wait()
            self.close_connection = True
            return
        if mood == "slow":
            self.server.ended.wait(3)
        if mood.isdigit():
            self._send(int(mood), {"errors": [{"message": "no"}]})
        elif self.path.endswith("/graphql"):
            self._send(200, {"data": self._graphql(json.loads(body))})
        elif self.path.endswith("/file_stream"):
            self._stream(self.path.split("/")[-2], json.loads(body))
            self._send(200, {})
        else:
            self._send(200, {})

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _graphql(self, asked: dict[str, Any]) -> dict[str, Any]:
        query, variables, runs = asked["query"], asked.get("variables") or {}, self.server.runs
        self.server.asked.append(query.split("(")[0].split("{")[0].strip())
        if "upsertBucket" in query:
            name = variables["name"]
            inserted = name not in runs
            run = runs.setdefault(name, {"id": f"id-{name}", "name": name, "config": "{}", "sweepName": None})
            run |= {"displayName": variables.get("displayName") or name, "description": "", "project": PROJECT}
            run["config"] = variables.get("config") or run["config"]
            return {
                "upsertBucket": {
                    "bucket": run | {"historyLineCount": len(self.server.rows.get(name, {}))},
                    "inserted": inserted,
                }
            }
        if "RunResumeStatus" in query:
            name = variables["name"]
            return {"model": PROJECT | {"bucket": self._resumed(name) if name in runs else None}}
        if "viewer" in query.lower():
            return {
                "viewer": {
                    "id": "v",
                    "entity": "me",
                    "username": "me",
                    "email": "",
                    "flags": "{}",
                    "teams": {"edges": []},
                }
            }
        if "serverInfo" in query:
            return {"serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None}}
        if "query ArtifactType" in query:
            return {"project": None}
        if "createArtifact" in query:  # the server has its content, which is not kept here
            latest = {"id": "a", "versionIndex": 0}
            sequence = {"id": "s", "name": "s", "latestArtifact": latest}
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": [
                {"name": name,
                 "uploadUrl": f"{self.server.address}/upload/{name}"} for name in variables["files"]]}}  # fmt: skip
        return {}

    def _resumed(self, name: str) -> dict[str, Any]:
        rows = self.server.rows.get(name, {})
        last = rows[max(rows)] if rows else {}
        return self.server.runs[name] | {
            "summaryMetrics": json.dumps(last), "logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(last)] if rows else []), "eventsTail": "[]",
            "tags": [], "notes": None,
            "wandbConfig": json.dumps({"t": {}}),
        }  # fmt: skip

    def _stream(self, name: str, sent: dict[str, Any]) -> None:
        part = sent.get("files", {}).get("wandb-history.jsonl")
        if part:
            rows = self.server.rows.setdefault(name, {})
            rows |= {part["offset"] + place: json.loads(line) for place, line in enumerate(part["content"])}


PROJECT: dict[str, Any] = {"id": "p", "name": "senet", "entity": {"id": "e", "name": "me"}}


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
