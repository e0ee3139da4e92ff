"""A worker process under test: forwards each batch to an output topic, then acknowledges it.

`python -m tests.helpers.batch_worker BOOTSTRAP GROUP INPUT OUTPUT NAME`: each output's value is
`NAME partition offset`, on the input's partition. It says `joined MEMBER_ID` and ends in order on SIGTERM.
"""

import asyncio
import signal
import sys
from typing import Any

from app.adapters.faust_app import crashed, running
from app.adapters.producer import BatchProducer, ProducerLimits
from app.adapters.transport import TransportLimits
from app.ports import OutRecord
from tests.helpers.faust import our_app


async def work(bootstrap: str, group: str, source: str, output: str, name: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with BatchProducer(ProducerLimits(bootstrap)) as producer:
        settling: set[asyncio.Task[None]] = set()

        async def settle(event: Any) -> None:
            await producer.publish(
                [
                    OutRecord(output, None, b"%s %d %d" % (name.encode(), r.partition, r.offset), 0, (), r.partition)
                    for r in event.value.records
                ]
            )
            event.ack()

        async def body(stream: Any) -> None:
            async for event in stream.noack().events():
                task = asyncio.create_task(settle(event))
                settling.add(task)
                task.add_done_callback(settling.discard)

        app = our_app(bootstrap, group, session_timeout_ms=1_500, limits=TransportLimits(batch_records=50))
        app.add_agent("forward", source, body)

        async def on_assigned(*_: Any, **__: Any) -> None:
            print(f"joined {app.consumer.member_id}", flush=True)

        app.on_partitions_assigned.connect(on_assigned, weak=False)
        async with running(app):
            endings = [asyncio.create_task(stop.wait()), asyncio.create_task(crashed(app))]
            await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
            for ending in endings:
                ending.cancel()
        print("left", flush=True)


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
