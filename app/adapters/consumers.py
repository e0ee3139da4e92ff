"""The end of a Kafka consumer."""

import asyncio

from aiokafka import AIOKafkaConsumer


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Stop it, its fetches and its connections.

    aiokafka (0.14.0, `Fetcher.close`) cancels its fetches and waits for each. One that rests after an error then raises
    its own CancelledError in whoever stops the consumer, who seems to be cancelled and ends without a word, and the
    connections stay open.
    """
    stopping = asyncio.ensure_future(consumer.stop())
    try:
        await asyncio.wait([stopping])
    finally:
        await _end(consumer, stopping)
    if not stopping.cancelled():
        stopping.result()


async def _end(consumer: AIOKafkaConsumer, stopping: "asyncio.Future[None]") -> None:
    """What a stop that was cancelled, or failed, has left; nothing where it did not."""
    rest = [stopping]
    if consumer._fetcher is not None:
        rest += [consumer._fetcher._fetch_task, *consumer._fetcher._pending_tasks]
    for each in rest:
        each.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    await consumer._client.close()
