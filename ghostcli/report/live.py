"""A report that fills by itself: the page, served to this machine alone, made again when a record has changed.

Invariant: it listens on the loopback address, answers requests for the page and nothing else, and writes no record.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ghostcli.errors import GhostError, printable

HOST = "127.0.0.1"


class Server(ThreadingHTTPServer):
    """`stamp()` is equal as long as nothing has changed; `make()` gives the page."""

    daemon_threads = True

    def __init__(self, port: int, stamp: Callable[[], object], make: Callable[[], str]) -> None:
        super().__init__((HOST, port), _Handler)
        self._stamp, self._make = stamp, make
        self._lock = threading.Lock()
        self._made: tuple[object, bytes, str] | None = None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def page(self) -> tuple[bytes, str]:
        """The page as it is now, and its version."""
        with self._lock:
            now = self._stamp()
            if self._made is None or self._made[0] != now:
                content = self._make().encode()
                self._made = (now, content, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
            return self._made[1:]


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "ghost", ""

    def do_GET(self) -> None:
        # Another site's name that leads here must not read the page.
        if self.headers.get("Host") not in (
            f"{HOST}:{self.server.server_port}",
            f"localhost:{self.server.server_port}",
        ):
            return self.send_error(HTTPStatus.FORBIDDEN)
        if self.path not in ("/", "/content"):
            return self.send_error(HTTPStatus.NOT_FOUND)
        try:
            content, version = self.server.page()
        except GhostError as error:
            return self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "the records cannot be read", printable(error))
        same = self.headers.get("If-None-Match") == version
        self.send_response(HTTPStatus.NOT_MODIFIED if same else HTTPStatus.OK)
        self.send_header("ETag", version)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if not same:
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not same:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not news."""
