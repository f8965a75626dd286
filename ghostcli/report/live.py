"""A report that fills by itself: the page, served to this machine alone, made again when a record has changed.

Invariant: it listens on the loopback address, answers requests for the page and nothing else, and writes no record.
"""

from __future__ import annotations

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
        self._made: tuple[object, bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def page(self) -> bytes:
        """The page as it is now."""
        with self._lock:
            now = self._stamp()
            if self._made is None or self._made[0] != now:
                self._made = now, self._make().encode()
            return self._made[1]


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
        if self.path != "/":
            return self.send_error(HTTPStatus.NOT_FOUND)
        try:
            content = self.server.page()
        except GhostError as error:
            return self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, "the records cannot be read", printable(error))
        self.send_response(HTTPStatus.OK)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not news."""
