"""Connections that wait no longer than they must: for the head of a request, and for who takes nothing."""

import asyncio
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from app.http import problems


class PatientConnection(H11Protocol):
    """HTTP/1.1 with limits that uvicorn does not have; bodies and answers are timed by the application.

    Made by `patient`. Without them whoever opens connections and says nothing, or asks for much and reads none of it,
    keeps each of them and its memory for ever, until there are `connections_max` and nobody else is served.
    """

    head_timeout_s: float
    stalled_s: float

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head()
        self._stop_taking()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_taking()

    def resume_writing(self) -> None:
        self._stop_taking()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect_taking()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect_taking()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered as every other error is."""
        body = problems.document(400, msg, "")
        headers = [("content-type", problems.CONTENT_TYPE), ("content-length", str(len(body))), ("connection", "close")]
        answer = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _stop_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _stop_taking(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _expect_head(self) -> None:
        """The time of a head runs from the connection, or from its first byte, to its end."""
        cycle: Any = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete:
            self._stop_head()
        elif self._head is None and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self._head = self.loop.call_later(self.head_timeout_s, self.transport.abort)

    def _expect_taking(self) -> None:
        """What is written must be taken, if slowly; or is dropped with the connection."""
        if self._taking is None:
            size = self.transport.get_write_buffer_size()
            self._taking = self.loop.call_later(self.stalled_s, self._look, size)

    def _look(self, size: int) -> None:
        self._taking = None
        if 0 < size <= self.transport.get_write_buffer_size():
            self.transport.abort()
        elif self.transport.get_write_buffer_size():
            self._expect_taking()


def patient(head_timeout_s: float, stalled_s: float) -> type[PatientConnection]:
    """Connections with these limits: a head takes no longer, and no answer stays untaken for longer."""
    limits = {"head_timeout_s": head_timeout_s, "stalled_s": stalled_s}
    return type("Connection", (PatientConnection,), limits)
