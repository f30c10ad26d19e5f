"""The far end of W&B's real client: a server on this machine that records what it is sent and answers as W&B does.

It knows the requests that wandb 0.31 makes for runs, files and artifacts; another one gets an error as its answer and
stands in `requests` all the same. It keeps one record per run, so that it can tell a client where to go on.
"""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "recorded"
KEY = "0123456789abcdef" * 2 + "01234567"
"""As long as a real one."""


@dataclass
class RecordedRun:
    """What a server knows of one run."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    is_preempting: bool = False

    def rows(self) -> list[dict[str, Any]]:
        """The history without the client's own columns."""
        lines = [json.loads(line) for line in self.history]
        return [{key: value for key, value in line.items() if not key.startswith("_")} for line in lines]


@dataclass
class RecordedArtifact:
    """What a server knows of one version of an artifact."""

    fields: dict[str, Any]
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    is_committed: bool = False
    used_by: list[str] = field(default_factory=list)

    @property
    def type(self) -> str:
        return str(self.fields["artifactTypeName"])

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(json.loads(self.fields["metadata"] or "{}"))


@dataclass(frozen=True)
class Request:
    """One request; `operation` is GraphQL's, else empty."""

    method: str
    path: str
    operation: str
    body: bytes


class WandbServer:
    """Records requests; see the module.

    Attributes:
        refused: Operations, and parts of paths, that are answered with 403.
        stalled: Likewise those that are never answered.
        keys: What clients have identified themselves with.
        views: Internal name -> saved view of a project, with the specification that it was saved with last.
        misread: Requests of a known operation in an unknown form.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.runs: dict[str, RecordedRun] = {}
        self.artifacts: dict[str, RecordedArtifact] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.refused: set[str] = set()
        self.stalled: set[str] = set()
        self.keys: set[str] = set()
        self.misread: list[str] = []
        self._ended = threading.Event()
        self._manifests: dict[str, str] = {}
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _Handler, self)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    @contextmanager
    def running(self) -> Iterator["WandbServer"]:
        """Answers until the block ends."""
        self._thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._http.shutdown()
            self._http.server_close()

    def count(self, operation: str) -> int:
        """How often an operation of GraphQL was asked for."""
        return sum(request.operation == operation for request in self.requests)

    def sent(self) -> bytes:
        """All that was sent, in one piece."""
        return b"\n".join(request.body for request in self.requests)

    def answer(self, method: str, path: str, key: str, body: bytes) -> tuple[int, Any]:
        """Records a request and returns status and JSON of the answer."""
        query = json.loads(body) if path == "/graphql" else {}
        found = re.search(r"(?:query|mutation)\s+(\w+)", query.get("query", ""))
        operation = found[1] if found else ""

        def is_in(kind: set[str]) -> bool:
            return any(part == operation or part in path for part in kind)

        if is_in(self.stalled):
            self._ended.wait()
        with self._lock:
            self.requests.append(Request(method, path, operation, body))
            self.keys |= {key} - {""}
            if is_in(self.refused):
                return 403, {"errors": [{"message": "refused"}]}
            if path == "/graphql":
                return self._reply(operation, query.get("variables") or {})
            if path.endswith("/file_stream"):
                return 200, self._stream(self.runs[path.split("/")[-2]], json.loads(body))
            if method == "PUT":
                self._store(path, body)
            return 200, {}

    def _reply(self, operation: str, asked: dict[str, Any]) -> tuple[int, Any]:
        known = getattr(self, f"_{operation}", None)
        if known is None:
            return 200, {"data": None, "errors": [{"message": f"unknown operation {operation}"}]}
        try:
            return 200, {"data": known(asked)}
        except (KeyError, TypeError) as error:  # another client's form; an answer, or it would try again and again
            self.misread.append(f"{operation}: {error!r}")
            return 400, {"errors": [{"message": "misread"}]}

    def _store(self, path: str, body: bytes) -> None:
        _, kind, owner, name = path.split("/", 3)
        if kind == "files-of-run":
            self.runs[owner].files[name] = body
        elif kind == "manifest":
            self.artifacts[owner].manifest = json.loads(body)
        elif kind == "files-of-artifact":
            self.artifacts[owner].files[name] = body

    def _stream(self, run: RecordedRun, body: dict[str, Any]) -> dict[str, Any]:
        for name, part in body.get("files", {}).items():
            if name == "wandb-summary.json":
                run.summary = json.loads(part["content"][-1])
            elif name in ("wandb-history.jsonl", "wandb-events.jsonl"):
                lines = run.history if name == "wandb-history.jsonl" else run.events
                lines[part["offset"] :] = part["content"]
        run.is_preempting = run.is_preempting or bool(body.get("preempting"))
        if body.get("complete"):
            run.exit_codes.append(body["exitcode"])
        return {"exitcode": None, "limits": {}}

    def _Viewer(self, asked: dict[str, Any]) -> Any:
        return {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}

    def _GetDefaultEntity(self, asked: dict[str, Any]) -> Any:
        return {"viewer": {"id": "1", "entity": ENTITY}}

    def _ServerFeaturesQuery(self, asked: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def _UpsertBucket(self, asked: dict[str, Any]) -> Any:
        is_new = asked["name"] not in self.runs
        run = self.runs.setdefault(asked["name"], RecordedRun(asked["name"]))
        run.fields |= {key: value for key, value in asked.items() if value is not None}
        run.config = json.loads(run.fields.get("config", "{}"))
        project = {"id": "p", "name": run.fields["project"], "entity": {"id": "e", "name": ENTITY}}
        bucket = {"id": f"id-{run.name}", "name": run.name, "displayName": run.fields.get("displayName")}
        bucket |= {"project": project, "historyLineCount": len(run.history), "config": run.fields.get("config")}
        return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}

    def _RunResumeStatus(self, asked: dict[str, Any]) -> Any:
        run = self.runs.get(asked["name"])
        entity = {"id": "e", "name": ENTITY}
        bucket = None if run is None else _describe(run)
        return {"model": {"id": "p", "name": asked["project"], "entity": entity, "bucket": bucket}}

    def _CreateRunFiles(self, asked: dict[str, Any]) -> Any:
        run = asked["run"]
        files = [{"name": name, "uploadUrl": f"{self.url}/files-of-run/{run}/{name}"} for name in asked["files"]]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, asked: dict[str, Any]) -> Any:
        name = f"artifact-{len(self.artifacts)}"
        self.artifacts[name] = RecordedArtifact(asked["input"])
        artifact = {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, asked: dict[str, Any]) -> Any:
        name = f"manifest-{len(self._manifests)}"
        self._manifests[name] = asked["artifactID"]
        file = {"id": name, "uploadHeaders": [], "uploadUrl": f"{self.url}/manifest/{asked['artifactID']}/{name}"}
        return {"createArtifactManifest": {"artifactManifest": {"id": name, "file": file}}}

    def _CreateArtifactFiles(self, asked: dict[str, Any]) -> Any:
        nodes = []
        for file in asked["input"]["artifactFiles"]:
            url = f"{self.url}/files-of-artifact/{file['artifactID']}/{file['name']}"
            node = {"storagePath": file["name"], "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
            nodes.append({"node": {**node, "artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _CommitArtifact(self, asked: dict[str, Any]) -> Any:
        self.artifacts[asked["artifactID"]].is_committed = True
        return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": "d"}}}

    def _View(self, asked: dict[str, Any]) -> Any:
        if asked["projectName"] not in {run.fields["project"] for run in self.runs.values()}:
            return {"project": None}
        view = self.views.get(asked["viewName"])
        return {"project": {"allViews": {"edges": [] if view is None else [{"node": view}]}}}

    def _UpsertView2(self, asked: dict[str, Any]) -> Any:
        known = {view["id"]: view for view in self.views.values()}
        is_new = "id" not in asked
        view = {"id": f"view-{len(self.views)}"} if is_new else known[asked["id"]]
        self.views[asked["name"]] = {**view, **{key: asked[key] for key in ("name", "displayName", "spec", "type")}}
        return {"upsertView": {"view": {"id": view["id"], "name": asked["name"]}, "inserted": is_new}}

    def _UseArtifact(self, asked: dict[str, Any]) -> Any:
        self.artifacts[asked["input"]["artifactID"]].used_by.append(asked["input"]["runName"])
        return {"useArtifact": {"artifact": {"id": asked["input"]["artifactID"]}}}


def _describe(run: RecordedRun) -> dict[str, Any]:
    """A run as a client that goes on with it must know it."""
    counts = {"historyLineCount": len(run.history), "eventsLineCount": len(run.events), "logLineCount": 0}
    tails = {"historyTail": json.dumps(run.history[-1:]), "eventsTail": json.dumps(run.events[-1:])}
    started = {"t": run.config.get("_wandb", {}).get("value", {}).get("t")}
    return {
        **counts,
        **tails,
        "id": f"id-{run.name}",
        "name": run.name,
        "displayName": run.fields.get("displayName"),
        "summaryMetrics": json.dumps(run.summary),
        "config": run.fields["config"],
        "tags": run.fields.get("tags"),
        "notes": None,
        "wandbConfig": json.dumps(started),
    }


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type["_Handler"], recorder: WandbServer) -> None:
        super().__init__(address, handler)
        self.recorder = recorder

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def _handle(self) -> None:
        recorder = self.server.recorder
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        scheme, _, credentials = (self.headers.get("Authorization") or "").partition(" ")
        key = base64.b64decode(credentials).decode().partition(":")[2] if scheme == "Basic" else credentials
        status, reply = recorder.answer(self.command, self.path, key, body)
        content = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_HEAD = _handle

    def log_message(self, format: str, *arguments: Any) -> None:
        pass
