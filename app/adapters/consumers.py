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
    except asyncio.CancelledError:
        stopping.cancel()
        raise
    if not stopping.cancelled():
        stopping.result()
        return
    fetches = [] if consumer._fetcher is None else [*consumer._fetcher._pending_tasks]
    for fetch in fetches:
        fetch.cancel()
    await asyncio.gather(*fetches, return_exceptions=True)
    await consumer._client.close()
