"""The HTTP server of the metrics: few connections at once, each for a short time.

Any user of this machine can connect to a loopback port. Idle connections must not use up the daemon's file
descriptors.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

log = logging.getLogger(__name__)
MAX_AT_ONCE = 8
SILENCE_S = 10.0
"""Seconds without data after which a connection is closed."""


class _Handler(WSGIRequestHandler):
    timeout = SILENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a scrape is not worth a line."""


class ScrapeServer(ThreadingMixIn, WSGIServer):
    """Serves a registry on host:port from threads of its own, at most MAX_AT_ONCE."""

    daemon_threads = True

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        """Listen at once. Raises OSError."""
        self.address_family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self._places = threading.BoundedSemaphore(MAX_AT_ONCE)
        super().__init__((str(address[0]), port), _Handler)
        self.set_app(make_wsgi_app(registry))
        threading.Thread(target=self.serve_forever, name="metrics", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the request, or close it at the limit."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and free the slot."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore the error: the client hung up, or sent nothing."""
        log.debug("a scrape ended early", exc_info=sys.exc_info())

    def close(self) -> None:
        """Stop listening."""
        self.shutdown()
        self.server_close()
