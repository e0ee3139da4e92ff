"""Faust's own producer for per-message agents, made to keep its word; batches go through `app.adapters.producer`."""

import asyncio
from collections.abc import Mapping
from typing import Any

from faust.transport.drivers import aiokafka as stock
from faust.transport.producer import ProducerBuffer

from app.errors import PublishFailed

FLUSH_POLL_S = 0.1


class SendBuffer(ProducerBuffer):
    """Faust's queue of `send_soon`, which also counts the record it has popped and not yet sent."""

    sending = 0

    async def _send_pending(self, fut: Any) -> None:
        self.sending += 1
        try:
            await super()._send_pending(fut)
        finally:
            self.sending -= 1

    async def flush(self) -> None:
        """Return when the queue is empty; stock Faust gives up after a stall of 100 ms."""
        while self.size or self.sending:
            if self.state != "running":
                raise PublishFailed("producer_stopped", self.size + self.sending)
            self.message_sent.clear()
            try:
                async with asyncio.timeout(FLUSH_POLL_S):
                    await self.message_sent.wait()
            except TimeoutError:
                continue


class Producer(stock.Producer):
    """Idempotent; `flush` returns only when all is acknowledged; a failed send crashes the app.

    So nothing is committed of what made a record that was not sent.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.buffer = SendBuffer(loop=self.loop, beacon=self.beacon)
        self.buffer.app = self.app

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        """Send one record; a failure that only shows later crashes the app."""
        sent = await super().send(*args, **kwargs)
        sent.add_done_callback(self._crash_on_failure)
        return sent

    def _crash_on_failure(self, sent: "asyncio.Future[Any]") -> None:
        error = None if sent.cancelled() else sent.exception()
        if error is not None:
            self.app._crash(error)  # noqa: SLF001 - a private name of Faust, pinned


# See app.adapters.transport: their chatter goes under Faust's name.
for _service in (SendBuffer, Producer):
    _service.logger = stock.logger
