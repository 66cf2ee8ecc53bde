"""A real HTTP server on loopback that takes what a webhook is sent."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Webhook:
    """`status` is answered, instead of all `raw` if that is given, with a pause after each byte; while `held` it answers
    nothing until released."""

    url: str = ""
    status: int = 204
    raw: bytes = b""
    pause_seconds: float = 0.0
    taken: list[dict[str, Any]] = field(default_factory=list)
    held: bool = False
    release: threading.Event = field(default_factory=threading.Event)


@contextmanager
def webhook() -> Iterator[Webhook]:
    state = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if state.held:
                state.release.wait(30.0)
                return
            state.taken.append(json.loads(body))
            if state.raw:
                for byte in state.raw:
                    self.wfile.write(bytes([byte]))
                    state.release.wait(state.pause_seconds)
                return
            self.send_response(state.status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    state.url = f"http://127.0.0.1:{server.server_port}/hook/T0KEN"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield state
    finally:
        state.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
