"""One request for a page, and the answer to it, as bytes.

Owns: what is a valid request. Must not: touch a socket, know pages. Called by: `server.py`, in its thread.
"""

from __future__ import annotations

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from urllib.parse import urlsplit


class Request(BaseHTTPRequestHandler):
    """The standard library's parser and formatter of HTTP, on bytes in memory instead of a socket."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"
    """Of a line that can't be parsed: an answer always has a status, which one to HTTP/0.9 would not have."""

    def __init__(self, head: bytes) -> None:
        self.rfile = BytesIO(head)
        self.wfile = self._written = BytesIO()
        self.requestline, self.request_version, self.command, self.page = "", "HTTP/1.1", "GET", ""
        self.is_valid = False
        if not head:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return
        self.raw_requestline = self.rfile.readline()
        if not self.parse_request():
            return
        if self.command not in ("GET", "HEAD"):
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED)
            return
        try:
            self.page = urlsplit(self.path).path
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        self.is_valid = True

    def refusal(self) -> bytes:
        """The answer to what is not valid."""
        return self._written.getvalue()

    def formatted(self, status: HTTPStatus, body: bytes, content_type: str) -> bytes:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self._written.write(body)
        return self._written.getvalue()

    def version_string(self) -> str:
        return "streamflow"

    def log_message(self, format: str, *args: object) -> None:
        """Requests aren't logged: there is one every few seconds, forever."""
