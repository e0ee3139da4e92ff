"""The role `api-gateway`: the HTTP API on its read model, with a producer for commands."""

import asyncio

from app.http.gateway import Gateway
from app.roles.context import Context


async def open_gateway(context: Context) -> Gateway:
    """Answer on the API port, before Kafka is reached."""
    gateway = Gateway(
        context.settings,
        context.health,
        bootstrap_servers=context.bootstrap,
        current=context.current,
        tracing=context.tracing,
    )
    await gateway.open()
    return gateway


async def run_gateway(context: Context, gateway: Gateway) -> None:
    """Feed the read model and pass commands on until stop."""
    async with context.producer("api") as producer:
        gateway.publisher = producer
        await asyncio.create_task(gateway.run(context.stop), name="gateway")
