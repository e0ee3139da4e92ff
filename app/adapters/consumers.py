"""What every Kafka consumer of ours needs beside aiokafka's own: a fetcher that does not oversleep, and an end."""

import asyncio
from typing import Final

from aiokafka import AIOKafkaConsumer

# aiokafka (0.14.0, `Fetcher._fetch_requests_routine`) takes a broker for busy for one more turn of the loop after a
# request has ended. Whoever seeks or reads in just that turn has it look, find nobody to ask, and look again after this
# time: 200 ms by default. Met at one takeover in four, when the seek to the committed offsets comes with the answer to
# the question for them. For `consumer_timeout_ms`; an idle look costs 0.05 ms.
LOOK_AGAIN_MS: Final = 20


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
