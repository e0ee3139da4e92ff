"""Faust's thread of the Kafka client, with an end that is one."""

from faust.transport.drivers import aiokafka as stock

from app.adapters.consumers import stop_consumer


class EndingThread(stock.AIOKafkaConsumerThread):
    """Ends while Kafka is away, too.

    Stock Faust stops the client as it is. What that cancels of its own then ends the thread before it has told that it
    has ended, and whoever stops it waits for a minute.
    """

    async def on_thread_stop(self) -> None:
        """Stop the queue of methods, then the client."""
        await super(stock.AIOKafkaConsumerThread, self).on_thread_stop()
        if self._consumer is not None:
            await stop_consumer(self._consumer)
