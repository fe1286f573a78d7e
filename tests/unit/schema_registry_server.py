"""A small server that speaks the Schema Registry's REST API, and fails on command."""

import json
import re
import threading
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from pipeline.codec import incompatibilities


class SchemaRegistryServer:
    """`with SchemaRegistryServer() as server:` serves at `server.url`.

    credentials: "user:password" that every request must bring. port: 0 takes a free one.
    `fail_with` makes every answer that HTTP status; `is_silent` makes it never come.
    """

    def __init__(self, credentials: str | None = None, port: int = 0) -> None:
        self.credentials = credentials
        self.schemas: list[dict[str, Any]] = []
        self.subjects: dict[str, list[int]] = {}
        self.requests: list[str] = []
        self.fail_with: int | None = None
        self.is_silent = False
        self._released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on. May be called twice."""
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def again(self) -> "SchemaRegistryServer":
        """Another one at the same address, with all that was registered; not yet serving."""
        other = SchemaRegistryServer(self.credentials, self._server.server_port)
        other.schemas, other.subjects = self.schemas, self.subjects
        return other

    def answer(self, method: str, path: str, body: Any, authorization: str | None) -> tuple[int, Any]:
        """Status and JSON of one request."""
        self.requests.append(f"{method} {path}")
        if self.is_silent:
            self._released.wait(30)
        if self.fail_with:
            return self.fail_with, {"error_code": self.fail_with * 100, "message": "told to fail"}
        if self.credentials and authorization != f"Basic {b64encode(self.credentials.encode()).decode()}":
            return 401, {"error_code": 40101, "message": "Unauthorized"}
        if found := re.fullmatch(r"/schemas/ids/(\d+)", path):
            return self._schema(int(found[1]))
        if found := re.fullmatch(r"/subjects/([^/]+)/versions/latest", path):
            return self._latest(found[1])
        if (found := re.fullmatch(r"/subjects/([^/]+)/versions", path)) and method == "POST":
            return self._register(found[1], body)
        return 404, {"message": "no such page"}

    def _schema(self, schema_id: int) -> tuple[int, Any]:
        if not 0 < schema_id <= len(self.schemas):
            return 404, {"error_code": 40403, "message": "Schema not found"}
        return 200, self.schemas[schema_id - 1]

    def _latest(self, subject: str) -> tuple[int, Any]:
        versions = self.subjects.get(subject)
        if not versions:
            return 404, {"error_code": 40401, "message": "Subject not found"}
        return 200, {
            "subject": subject, "version": len(versions), "id": versions[-1], **self.schemas[versions[-1] - 1]
        }  # fmt: skip

    def _register(self, subject: str, body: Any) -> tuple[int, Any]:
        versions = self.subjects.setdefault(subject, [])
        if versions and incompatibilities(body["schema"], self.schemas[versions[-1] - 1]["schema"]):
            return 409, {"error_code": 409, "message": "Schema being registered is incompatible\nwith an earlier one"}
        if body not in self.schemas:
            self.schemas.append(body)
        schema_id = self.schemas.index(body) + 1
        if schema_id not in versions:
            versions.append(schema_id)
        return 200, {"id": schema_id}


def _handler(registry: SchemaRegistryServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            path = self.path.partition("?")[0]
            status, answer = registry.answer(self.command, path, body, self.headers.get("Authorization"))
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _serve  # noqa: N815 (http.server's names)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
            """Say nothing."""

    return Handler
