"""The devices that `device.metadata` knows, kept up to date."""

import asyncio

from app.adapters.read_feed import ReadFeed
from config.http import ReadModelSettings
from config.kafka import KafkaSettings
from config.topics import DEVICE_METADATA

_LOOK_S = 0.02


class DeviceRegistry:
    """A container of device ids. Until the whole topic was read it holds every device: nobody is refused on a guess."""

    def __init__(
        self,
        kafka: KafkaSettings,
        bootstrap_servers: str,
        limits: ReadModelSettings,
        topic: str = DEVICE_METADATA.name,
    ) -> None:
        self._known: set[str] = set()
        self._feed = ReadFeed(
            kafka,
            bootstrap_servers,
            limits,
            self._take,
            lambda: None,
            topics=(topic,),
            whole=(topic,),
            skippable=(),
            reader="the device registry",
        )

    def __contains__(self, device_id: object) -> bool:
        return device_id in self._known or not self._feed.caught_up

    def __len__(self) -> int:
        return len(self._known)

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the topic until `stop`, through any absence of the broker."""
        await self._feed.run(stop)

    async def complete(self) -> None:
        """Return when all that the topic held was read; `run` is under way."""
        while not self._feed.caught_up:  # noqa: ASYNC110 - the feed calls nobody
            await asyncio.sleep(_LOOK_S)

    def _take(self, _: str, key: bytes | None, value: bytes | None) -> None:
        if key is None:
            return
        device_id = key.decode(errors="replace")
        if value is None:
            self._known.discard(device_id)
        else:
            self._known.add(device_id)
