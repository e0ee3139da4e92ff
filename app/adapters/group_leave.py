"""Takes members out of Kafka consumer groups that cannot leave any more, over a connection that is kept warm.

`LeaveGroup` needs no more than the member's id: whoever knows it may send it, and the group moves the partitions at
once instead of after the session time-out.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError, UnknownMemberIdError, for_code
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.group import LeaveGroupRequest

from app.domain.cluster import GroupSeat
from app.errors import BrokerUnavailable

log = logging.getLogger(__name__)

# A broker that does not answer by then is asked for no longer: another may coordinate the group meanwhile.
REQUEST_TIMEOUT_MS: Final = 2_000
# By then the session time-out, the back-stop, has done it.
GIVE_UP_S: Final = 10.0
WARM_INTERVAL_S: Final = 10.0
RETRY_S: Final = 0.1


class GroupRemover:
    """Knows the coordinator of each group it was told of, and keeps a connection to it open."""

    def __init__(
        self,
        bootstrap_servers: str,
        client_id: str,
        security: Mapping[str, Any] | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bootstrap = bootstrap_servers
        self._monotonic_s = monotonic_s
        self._options = {"client_id": client_id, "request_timeout_ms": REQUEST_TIMEOUT_MS, **(security or {})}
        self._client: AIOKafkaClient | None = None
        self._connecting = asyncio.Lock()
        self._coordinators: dict[str, int] = {}
        self._wanted: set[str] = set()
        self._told = asyncio.Event()

    def know(self, groups: Iterable[str]) -> None:
        """These groups are of interest from now on."""
        fresh = set(groups) - self._wanted
        if fresh:
            self._wanted |= fresh
            self._told.set()

    async def keep_warm(self) -> None:
        """Look the coordinators up ahead of need and again from time to time, for as long as nobody cancels."""
        while True:
            self._told.clear()
            for group in sorted(self._wanted):
                try:
                    async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000 * 2):
                        await self._find(group)
                except (KafkaError, OSError, TimeoutError) as error:
                    log.debug("the coordinator of %s is not found: %s", group, error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), WARM_INTERVAL_S)

    async def remove(self, seat: GroupSeat) -> bool:
        """Take the seat's member out of its group; False when it was not in it any more.

        Raises `BrokerUnavailable` when no broker could be asked for `GIVE_UP_S`.
        """
        ends_s = self._monotonic_s() + GIVE_UP_S
        while True:
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000 * 2):
                    return await self._leave(seat)
            except (KafkaError, OSError, TimeoutError) as error:
                self._coordinators.pop(seat.group, None)
                if self._monotonic_s() >= ends_s:
                    raise BrokerUnavailable(f"No broker removes a member of {seat.group}: {error!r}.") from error
            await asyncio.sleep(RETRY_S)

    async def _leave(self, seat: GroupSeat) -> bool:
        node = self._coordinators.get(seat.group)
        if node is None:
            node = await self._find(seat.group)
        answer = await (await self._connected()).send(node, LeaveGroupRequest(seat.group, seat.member_id))
        error = for_code(answer.error_code)
        if error is UnknownMemberIdError:
            return False
        if answer.error_code:
            raise error(seat.group)
        return True

    async def members_of(self, group: str, client_id_end: str) -> tuple[GroupSeat, ...]:
        """The members that a process with such a client id has in the group, those included that it never told of.

        Raises `BrokerUnavailable`.
        """
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_MS / 1000 * 2):
                node = self._coordinators.get(group)
                if node is None:
                    node = await self._find(group)
                answer = await (await self._connected()).send(node, DescribeGroupsRequest([group]))
        except (KafkaError, OSError, TimeoutError) as error:
            raise BrokerUnavailable(f"The members of {group} cannot be asked for: {error!r}.") from error
        return tuple(
            GroupSeat(group, member[0])
            for _, _, _, _, _, members, *_ in answer.groups
            for member in members
            if member[1].endswith(client_id_end)
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _find(self, group: str) -> int:
        client = await self._connected()
        node: int = await client.coordinator_lookup(CoordinationType.GROUP, group)
        await client.ready(node)
        self._coordinators[group] = node
        return node

    async def _connected(self) -> AIOKafkaClient:
        async with self._connecting:
            if self._client is None:
                client = AIOKafkaClient(bootstrap_servers=self._bootstrap, **self._options)
                try:
                    await client.bootstrap()
                except BaseException:
                    await client.close()
                    raise
                self._client = client
        return self._client
