"""Servers of files in threads of the test: they do what they are told to do wrong, and remember what they were asked."""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Asked(NamedTuple):
    """A request, as it came."""

    method: str
    path: str
    headers: dict[str, str]


class _Served:
    """A server in a thread of its own, from `with` on until that is left."""

    handler: type[BaseHTTPRequestHandler]

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        self._server.daemon_threads = True
        self._server.served = self  # type: ignore[attr-defined]
        self.asked: list[Asked] = []
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _note(self) -> Any:
        served = self.server.served  # type: ignore[attr-defined]
        served.asked.append(Asked(self.command, self.path, dict(self.headers)))
        return served

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


# ---- a web server -----------------------------------------------------------------------------------------------------


class _WebHandler(_Handler):
    def do_GET(self) -> None:
        web = self._note()
        trouble = web.troubles.popleft() if web.troubles else None
        body = web.content.get(urlsplit(self.path).path)
        if isinstance(trouble, str):
            self._reply(302, b"", Location=trouble)
        elif trouble in range(400, 600):
            self._reply(trouble, b"")
        elif body is None:
            self._reply(404, b"")
        else:
            self._send(body, web.etag, trouble)

    def _send(self, body: bytes, etag: str, most: int | None) -> None:
        """The file, or the rest of it; the connection ends after `most` bytes."""
        asked, status, extra = self.headers.get("Range"), 200, {}
        part = body
        if etag and asked and self.headers.get("If-Range") == etag:
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            status, part, extra = 206, body[begin:], {"Content-Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(part)), **({"ETag": etag} if etag else {}), **extra}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(part[:most])
        self.close_connection = True

    def do_PUT(self) -> None:
        web = self._note()
        body = self._body()
        if web.troubles:
            self._reply(web.troubles.popleft(), b"")
        else:
            web.content[self.path] = body
            self._reply(201, b"")


class Web(_Served):
    """A web server that knows ranges.

    Attributes:
        content: of its files, by path.
        troubles: with the next requests: a status from 400 to 599, or other bytes after which the connection ends, or where it redirects to.
        etag: of all files; "" for none, and no ranges.
    """

    handler = _WebHandler

    def __init__(self, content: dict[str, bytes]) -> None:
        super().__init__()
        self.content = content
        self.troubles: deque[int | str] = deque()
        self.etag = '"1"'


# ---- the Globus Transfer service --------------------------------------------------------------------------------------


class _GlobusHandler(_Handler):
    """The calls of https://docs.globus.org/api/transfer/ that a transfer takes."""

    def _say(self, document: dict[str, Any], status: int = 200) -> None:
        self._reply(status, json.dumps(document).encode(), Content_Type="application/json")

    def _refuse(self, status: int, code: str) -> None:
        self._say({"code": code, "message": f"the stand-in says {code}", "resource": self.path, "request_id": "r"}, status)

    def do_GET(self) -> None:
        globus = self._note()
        words = self.path.strip("/").split("/")
        if self.headers.get("Authorization") != f"Bearer {globus.token}":
            self._refuse(401, "AuthenticationFailed")
        elif words == ["v0.10", "submission_id"]:
            self._say({"DATA_TYPE": "submission_id", "value": str(uuid.uuid4())})
        elif words[:2] == ["v0.10", "task"] and words[2] in globus.tasks:
            self._say(globus.look(words[2]))
        else:
            self._refuse(404, "ClientError.NotFound")

    def do_POST(self) -> None:
        globus = self._note()
        body = self._body()
        words = self.path.strip("/").split("/")
        if self.headers.get("Authorization") != f"Bearer {globus.token}":
            self._refuse(401, "AuthenticationFailed")
        elif words == ["v0.10", "transfer"]:
            document = json.loads(body)
            for side in ("source_endpoint", "destination_endpoint"):
                if document[side] not in globus.collections:
                    self._refuse(404, "EndpointNotFound")
                    return
            task = str(uuid.uuid4())
            globus.tasks[task] = document
            self._say({"DATA_TYPE": "transfer_result", "code": "Accepted", "message": "accepted", "task_id": task,
                       "submission_id": document["submission_id"], "request_id": "r", "resource": "/transfer"}, 202)  # fmt: skip
        elif words[:2] == ["v0.10", "task"] and words[3:] == ["cancel"]:
            globus.cancelled.append(words[2])
            self._say({"DATA_TYPE": "result", "code": "Canceled", "message": "cancelled", "request_id": "r", "resource": self.path})
        else:
            self._refuse(404, "ClientError.NotFound")


class Globus(_Served):
    """The Transfer service of Globus with some collections, each a directory.

    Attributes:
        tasks: what was submitted, by task.
        cancelled: tasks that were.
        waits: how often a task is still active when it is asked for; a negative number for ever.
    """

    handler = _GlobusHandler

    def __init__(self, collections: dict[str, Path], token: str = "secret") -> None:
        super().__init__()
        self.collections = collections
        self.token = token
        self.tasks: dict[str, dict[str, Any]] = {}
        self.cancelled: list[str] = []
        self.waits = 1

    def look(self, task: str) -> dict[str, Any]:
        """The document of a task; it is done when it is asked for often enough."""
        document = {"DATA_TYPE": "task", "task_id": task, "type": "TRANSFER", "status": "ACTIVE", "nice_status": "OK"}
        if self.waits:
            self.waits -= 1
            return document
        asked = self.tasks[task]
        [item] = asked["DATA"]
        source, target = (
            self.collections[asked[f"{side}_endpoint"]] / item[f"{side}_path"].lstrip("/") for side in ("source", "destination")
        )
        if not source.exists():
            fatal = {"code": "FILE_NOT_FOUND", "description": f"No such file: {item['source_path']}"}
            return {**document, "status": "FAILED", "fatal_error": fatal}
        os.makedirs(target.parent, exist_ok=True)
        shutil.copyfile(source, target)
        return {**document, "status": "SUCCEEDED"}
