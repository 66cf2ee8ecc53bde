"""HTTP/1.1 in front of a simulated server: an asyncio protocol that does no more than such a client needs.

Written by hand, because a general server costs more processor time a request than the client that is measured with it.
"""

import asyncio
import os
import socket
import struct
import sys
import time
from email.utils import formatdate
from http import HTTPStatus

from era_dagster.domain.errors import ConfigurationError
from era_dagster.simulation.dialects import Reply
from era_dagster.simulation.server import SimulatedServer

LOOPBACK = "127.0.0.1"
LONGEST_HEAD_BYTES = 65_536
LONGEST_BODY_BYTES = 256 * 1024 * 1024
SEND_BUFFER_BYTES = 1_048_576
"""An answer of 16 vectors is 150 kB: with the system's small buffer it would be copied and sent in pieces."""

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_RESET_AT_ONCE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


async def listen(server: SimulatedServer, port: int) -> tuple[asyncio.Server, str]:
    """Listen on loopback, at a free port for 0; gives the listener and its URL.

    Raises `ConfigurationError` when the port cannot be had.
    """
    loop = asyncio.get_running_loop()
    try:
        listener = await loop.create_server(lambda: _Connection(server), LOOPBACK, port, backlog=1024)
    except OSError as error:
        raise ConfigurationError(
            f"Port {port} of {LOOPBACK} cannot be used: {_reason(error)}.",
            hint="Choose another one with --port, or 0 for any free one.",
        ) from error
    return listener, f"http://{LOOPBACK}:{listener.sockets[0].getsockname()[1]}"


def _reason(error: OSError) -> str:
    """The system's own word; asyncio wraps it into a sentence about its attempt."""
    return (os.strerror(error.errno) if error.errno else str(error)).lower()


class _Connection(asyncio.Protocol):
    """One connection: requests are read one after the other, the next when the one before is answered."""

    def __init__(self, server: SimulatedServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._request: tuple[str, str, str | None] | None = None
        self._body_from = self._need = 0
        self._waits = self._reading = self._closes = self._head_only = False

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def eof_received(self) -> bool:
        return False  # a client that closed its side has gone: these clients never half-close

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._read()

    def _read(self) -> None:
        """Hand over every request that is complete and whose turn it is."""
        if self._reading:
            return
        self._reading = True
        while not self._waits and self.is_open:
            if self._request is None and not self._read_head():
                break
            if len(self._buffer) < self._need or self._request is None:
                break
            body = bytes(memoryview(self._buffer)[self._body_from : self._need])
            del self._buffer[: self._need]
            (method, target, authorization), self._request = self._request, None
            self._waits = True
            self._server.handle(self, method, target, authorization, body)
        self._reading = False

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > LONGEST_HEAD_BYTES:
                self._refuse(431)
            return False
        first, _, rest = bytes(self._buffer[:end]).decode("latin-1").partition("\r\n")
        words = first.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            self._refuse(400)
            return False
        length, authorization = 0, None
        self._closes = words[2] == "HTTP/1.0"
        for line in rest.split("\r\n"):
            name, _, value = line.partition(":")
            match name.lower():
                case "content-length":
                    value = value.strip()
                    if not value.isdecimal() or int(value) > LONGEST_BODY_BYTES:
                        self._refuse(400 if not value.isdecimal() else 413)
                        return False
                    length = int(value)
                case "transfer-encoding":
                    self._refuse(411)
                    return False
                case "authorization":
                    authorization = value.strip()
                case "connection":
                    self._closes = "close" in value.lower()
                case "expect":
                    if self._transport is not None:
                        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                case _:
                    pass
        self._head_only = words[0] == "HEAD"
        self._request = (words[0], words[1], authorization)
        self._body_from = end + 4
        self._need = self._body_from + length
        return True

    def _refuse(self, status: int) -> None:
        self._closes = True
        self.send(Reply(status=status, body=_REASONS[status].encode("ascii"), content_type="text/plain"))

    def send(self, reply: Reply) -> None:
        """Answer the request that waits, and go on to the next."""
        self._waits = False
        if self._transport is None:
            return
        head = (
            f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Unknown')}\r\n"
            f"Content-Type: {reply.content_type}\r\nDate: {_date(int(time.time()))}\r\n"
            f"Content-Length: {len(reply.body)}\r\n"
        )
        for name, value in reply.headers.items():
            head += f"{name}: {value}\r\n"
        if self._closes:
            head += "Connection: close\r\n"
        body = b"" if self._head_only else reply.body if reply.cut is None else reply.body[: reply.cut]
        self._transport.write(b"%b\r\n%b" % (head.encode("latin-1"), body))
        if self._closes or reply.cut is not None:
            self._transport.close()
        elif self._buffer:
            self._read()

    def reset(self) -> None:
        """Break off, as a process does that dies: the other side sees a reset."""
        if self._transport is not None:
            socket_ = self._transport.get_extra_info("socket")
            socket_.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_ONCE)
            self._transport.abort()


_last_date = (0, "")


def _date(second: int) -> str:
    """The Date header's value, formatted once a second."""
    global _last_date  # noqa: PLW0603
    if _last_date[0] != second:
        _last_date = (second, formatdate(second, usegmt=True))
    return _last_date[1]
