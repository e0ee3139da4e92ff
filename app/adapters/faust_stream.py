"""A Faust stream that acknowledges through the message, and never what nobody has processed."""

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator
from typing import Any

from faust.exceptions import Skip
from faust.streams import Stream, _current_event
from faust.types import EventT
from mode.utils.futures import maybe_async


class RangeStream(Stream):
    """Stock Faust's compiled iterator writes acknowledgements into its own books, past `Consumer.ack`.

    And both of its iterators acknowledge an event that they skip because a rebalance or a stop has begun:
    committed a moment later, it would never have been processed. Such an event is dropped here; it is
    fetched again from the committed offset.
    """

    logger = logging.getLogger("faust.streams")

    def __aiter__(self) -> AsyncIterator[Any]:
        iterator = self._values()
        self._active_agens.add(iterator)
        return iterator

    async def _values(self) -> AsyncIterator[Any]:
        self._finalized = True
        started_here = await self.maybe_start()
        try:
            while not self.should_stop:
                await asyncio.sleep(0)  # an agent that never waits must not hold the loop
                found = await self.channel.__anext__()
                event = found if isinstance(found, EventT) else None
                if event is not None and not self._begin(event):
                    continue
                value, wanted = await self._processed(found if event is None else event.value)
                try:
                    if wanted:
                        self.events_total += 1
                        yield value
                finally:
                    self.current_event = None
                    if event is not None and (self.enable_acks or not wanted):
                        await self.ack(event)
        except StopAsyncIteration:
            return  # the end of a stream over a list
        finally:
            self._channel_stop_iteration(self.channel)
            if started_here:
                await self.stop()
                self.service_reset()

    def _begin(self, event: EventT) -> bool:
        """Whether the event is still ours to process; from here on a rebalance waits for it."""
        message = event.message
        if not self.app.flow_control.is_active() or message.generation_id != self.app.consumer_generation_id:
            return False
        if message.topic in self.app.topics.acking_topics and not message.tracked:
            message.tracked = True
            self.app.consumer.unacked.add(message)
            self._on_message_in(message.tp, message.offset, message)
        self._on_stream_event_in(message.tp, message.offset, self, event)
        _current_event.set(weakref.ref(event))
        self.current_event = event
        return True

    async def _processed(self, value: Any) -> tuple[Any, bool]:
        """The value after the stream's processors, and whether they let it through."""
        try:
            for processor in self._processors:
                value = await maybe_async(processor(value))
            return await self.on_merge(value), True
        except Skip:
            return None, False
