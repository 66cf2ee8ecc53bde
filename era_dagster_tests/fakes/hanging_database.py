"""A database that takes connections and says nothing."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def hanging_database(*, seconds: float) -> Iterator[tuple[str, list[socket.socket]]]:
    """A URL where each connection is taken, and closed without a word after so long; and the connections so far."""
    connected: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as hanging:

        def serve() -> None:
            with suppress(OSError):  # closed
                while True:
                    connected.append(hanging.accept()[0])
                    threading.Timer(seconds, connected[-1].close).start()

        threading.Thread(target=serve, daemon=True).start()
        port = hanging.getsockname()[1]
        yield f"postgresql://era@127.0.0.1:{port}/era?sslmode=disable&gssencmode=disable", connected
