"""Takes processes and nodes that are gone out of their groups, and says so in one line."""

import asyncio
import logging
import socket
from collections.abc import Iterable, Sequence

from app.adapters.group_leave import GroupRemover
from app.domain.cluster import GroupSeat
from app.errors import BrokerUnavailable
from app.node_children import Watched
from app.ports import Clock

log = logging.getLogger(__name__)


class Removal:
    """Removes over the warm connection of `remover`."""

    def __init__(self, remover: GroupRemover, clock: Clock) -> None:
        self._remover = remover
        self._clock = clock

    async def of_child(self, child: Watched, event: str) -> None:
        """Take a child out of its groups; once it is dead, also what it never told of."""
        begun_s = self._clock.monotonic_s()
        removed = await self._leave(child.seats)
        if event == "died":
            removed += await self._leave(await self._untold(child))
        if removed:
            what = f"{child.name} is frozen" if event == "frozen" else f"{child.name} died"
            self._tell(event, what, removed, begun_s)

    async def of_peer(self, who: str, what: str, seats: tuple[GroupSeat, ...]) -> None:
        """Take members of another node out of their groups; another may have done it a moment before."""
        begun_s = self._clock.monotonic_s()
        removed = await self._leave(seats)
        if removed:
            self._tell("removed", f"{who} {what}", removed, begun_s)

    async def _untold(self, child: Watched) -> list[GroupSeat]:
        """A member between its request to join and the answer has an id that only the broker knows."""
        told = {seat.member_id for seat in child.seats}
        ending = f"-{socket.gethostname()}-{child.pid}"
        found: list[GroupSeat] = []
        for group in child.groups:
            try:
                found += [seat for seat in await self._remover.members_of(group, ending) if seat.member_id not in told]
            except BrokerUnavailable as error:
                log.info("%s", error, extra={"action": "cluster_event", "event": "removal_failed", "group": group})
        return found

    async def _leave(self, seats: Iterable[GroupSeat]) -> list[GroupSeat]:
        """Send `LeaveGroup` for all of them at once; those that were members until then."""
        seats = list(seats)
        answers = await asyncio.gather(*(self._remover.remove(seat) for seat in seats), return_exceptions=True)
        for seat, answer in zip(seats, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, BrokerUnavailable):
                raise answer
            if isinstance(answer, BrokerUnavailable):
                log.error(
                    "%s A dead member stays until its session ends.",
                    answer,
                    extra={"action": "cluster_event", "event": "removal_failed", "group": seat.group},
                )
        return [seat for seat, answer in zip(seats, answers, strict=True) if answer is True]

    def _tell(self, event: str, what: str, removed: Sequence[GroupSeat], begun_s: float) -> None:
        took_ms = (self._clock.monotonic_s() - begun_s) * 1000
        groups = sorted({seat.group for seat in removed})
        log.warning(
            f"{what}: removed from {', '.join(groups)} in {took_ms:.0f} ms",
            extra={
                "action": "cluster_event",
                "event": event,
                "groups": groups,
                "partitions": sum(len(seat.partitions) for seat in removed),
                "took_ms": round(took_ms, 1),
            },
        )
