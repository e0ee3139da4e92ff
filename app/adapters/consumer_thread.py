"""Faust's thread of the Kafka client, with a fetcher that does not oversleep and an end that is one."""

from typing import Any

from aiokafka import AIOKafkaConsumer
from faust.transport.drivers import aiokafka as stock

from app.adapters.consumers import LOOK_AGAIN_MS, stop_consumer


class EndingThread(stock.AIOKafkaConsumerThread):
    """Ends while Kafka is away, too.

    Stock Faust stops the client as it is. What that cancels of its own then ends the thread before it has told that it
    has ended, and whoever stops it waits for a minute.
    """

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._consumer_timeout = LOOK_AGAIN_MS / 1000  # read in start() only, which comes after this
        return consumer

    async def on_thread_stop(self) -> None:
        """Stop the queue of methods, then the client."""
        await super(stock.AIOKafkaConsumerThread, self).on_thread_stop()
        if self._consumer is not None:
            await stop_consumer(self._consumer)
