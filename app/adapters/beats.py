"""What a process holds in its groups, and the thread that beats with it to the supervisor.

The beats come from a thread of their own: a loop that computes is no dead process, and a stopped process beats no more.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import msgspec

from app.cluster_wire import seat_document
from app.domain.cluster import GroupSeat

log = logging.getLogger(__name__)

# A line of a thousand seats is far below it.
LINE_BYTES: Final = 4 << 20


class Seats:
    """The seats of this process, told by its roles in their loop and asked for in any thread."""

    def __init__(self) -> None:
        self._looks: dict[str, Callable[[], str]] = {}
        self._given: dict[str, GroupSeat] = {}
        self._changed = threading.Condition()
        self._version = 0
        self.ready = False

    def watch(self, group: str, member_id: Callable[[], str]) -> None:
        """A client of this process joins `group`; `member_id` may be asked in any thread, and is empty before."""
        self._looks[group] = member_id
        self._given.pop(group, None)

    def took(self, group: str, generation: int, partitions: Iterable[str], standbys: Iterable[str] = ()) -> None:
        """The group has given the member these partitions."""
        seat = GroupSeat(group, self._looks[group](), generation, tuple(sorted(partitions)), tuple(sorted(standbys)))
        self._given[group] = seat
        self.tell()

    def tell(self) -> None:
        """Wake whoever passes the seats on."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def now(self) -> tuple[GroupSeat, ...]:
        """The seats of the members that are in their groups; a member is told of before it has its partitions."""
        found = []
        for group, look in list(self._looks.items()):
            member_id = look()
            given = self._given.get(group)
            if not member_id:
                continue
            same = given is not None and given.member_id == member_id
            found.append(given if given is not None and same else GroupSeat(group, member_id))
        return tuple(found)

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that this process joins, also before it has."""
        return tuple(self._looks)

    def wait(self, seen: int, timeout_s: float) -> int:
        """Return after `timeout_s`, or as soon as something was told after `seen`; what to call `seen` next."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen, timeout_s)
            return self._version


class PipeBeats(threading.Thread):
    """Writes a beat to the supervisor each interval, and the seats whenever they are others than before."""

    def __init__(self, fd: int, seats: Seats, interval_s: float) -> None:
        super().__init__(name="beats", daemon=True)
        self._fd = fd
        self._seats = seats
        self._interval_s = interval_s
        self._ending = threading.Event()

    def run(self) -> None:
        """Beat until `stop`, or until nobody hears it."""
        beat, seen, told = 0, 0, b""
        while not self._ending.is_set():
            beat += 1
            message: dict[str, Any] = {"beat": beat, "ready": self._seats.ready}
            message["groups"] = self._seats.groups
            message["seats"] = [seat_document(seat) for seat in self._seats.now()]
            said = msgspec.json.encode([message["seats"], message["groups"]])
            if said == told:
                del message["seats"], message["groups"]
            told = said
            if not self._write(msgspec.json.encode(message) + b"\n"):
                return
            seen = self._seats.wait(seen, self._interval_s)

    def _write(self, line: bytes) -> bool:
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except OSError as error:
            log.info("the supervisor hears no more", extra={"action": "announce_failed", "error": str(error)})
            return False
        return True

    def stop(self) -> None:
        """End it, within an interval."""
        self._ending.set()
        self._seats.tell()
        self.join(timeout=1.0)
        if not self.is_alive():
            with contextlib.suppress(OSError):
                os.close(self._fd)


class ChildBeat(NamedTuple):
    """What a child said in one beat; `seats` and `groups` are None when they are those of before."""

    ready: bool
    seats: tuple[GroupSeat, ...] | None
    groups: tuple[str, ...] | None


class _Line(msgspec.Struct):
    beat: int
    ready: bool = False
    seats: tuple[GroupSeat, ...] | None = None
    groups: tuple[str, ...] | None = None


_lines: Final = msgspec.json.Decoder(_Line)


def decode_beat(line: bytes) -> ChildBeat:
    """A line of the pipe. Raises ValueError."""
    try:
        said = _lines.decode(line)
    except msgspec.MsgspecError as error:
        raise ValueError(f"a beat of a child cannot be read: {error}") from error
    return ChildBeat(said.ready, said.seats, said.groups)
