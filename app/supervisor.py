"""Keeps one child process a role alive, and stops them in order within one deadline."""

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.domain.restart import RestartPolicy, after_death
from app.errors import HeadraceError
from app.http.view import on_disk
from app.lifecycle import Deadline
from app.metrics import CHILD_RESTARTS, CHILD_UP
from app.supervisor_child import Child, Relay, Watch, environment, worker_command
from config.supervisor import SupervisorSettings

log = logging.getLogger(__name__)

# Sources first, so that nothing new comes in while the rest finishes; the API last, to be seen to the end.
STOP_ORDER = ("producer", "worker", "coordinator", "storage", "api-gateway")
# A child that ends with one of these (app/errors.py) says that it cannot run as it was asked to.
HOPELESS = frozenset({2, 3})


class ChildHopeless(HeadraceError):
    """A child cannot run as it was asked to; it has said why."""

    def __init__(self, role: str, exit_code: int) -> None:
        super().__init__(f"The {role} process cannot run as it is set up; its own message is above.", role=role)
        self.exit_code = exit_code


@dataclass(slots=True)
class Slot:
    """The place of one role: the child that fills it now, and its history."""

    role: str
    child: Child | None = None
    deaths: int = 0
    restarts: int = 0
    last_exit: int | None = None
    healthy_since_s: float | None = None
    seen_ledger: dict[str, float] = field(default_factory=dict)


class Supervisor:
    """One process a role. `start`, then `failed` may be awaited, then `stop`."""

    def __init__(
        self,
        settings: SupervisorSettings,
        roles: Sequence[str],
        *,
        url: str,
        environ: Mapping[str, str],
        command: Callable[[str], Sequence[str]] = worker_command,
        relay: Relay | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._policy = RestartPolicy(
            settings.restart_backoff_ms / 1000, settings.restart_backoff_max_ms / 1000, settings.healthy_after_s
        )
        self._environment = environment(environ, url)
        self._command = command
        self._relay = relay
        self._watch: Watch | None = None
        self._monotonic_s = monotonic_s
        self._stopping = asyncio.Event()
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self.slots = {role: Slot(role) for role in roles}
        self._spawning = asyncio.Lock()
        self.closed_ledger: Counter[str] = Counter()
        self.crashed_ledger: Counter[str] = Counter()
        self.silent_deaths = 0
        self.left_on_disk = 0  # readings in the spool of the last producer that ended

    @property
    def started(self) -> bool:
        return bool(self._keepers)

    async def start(self, extra_environ: Mapping[str, str] | None = None, watch: Watch | None = None) -> None:
        """Start every child; return when each has been started once (not: when it is ready).

        `watch` is told of each child, then and at every restart.
        """
        self._watch = watch
        self._environment |= extra_environ or {}
        for slot in self.slots.values():
            await self._spawn(slot)
            self._keepers[slot.role] = asyncio.create_task(self._keep(slot), name=f"keeper of {slot.role}")

    async def failed(self) -> None:
        """Raise `ChildHopeless` when a child cannot ever run; otherwise return only after the stop."""
        if self._keepers:
            done, _ = await asyncio.wait(self._keepers.values(), return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()

    async def stop(self, deadline: Deadline, drained: Callable[[], Coroutine[Any, Any, None]] | None = None) -> bool:
        """Stop the children one after another in `STOP_ORDER`; True when none had to be killed.

        `drained` is awaited before the worker is stopped, for `drain_timeout_s` at most.
        """
        self._stopping.set()
        async with self._spawning:  # a start under way ends first; no other follows
            orderly = True
        order = [role for role in STOP_ORDER if role in self.slots]
        order += [role for role in self.slots if role not in order]
        for place, role in enumerate(order):
            if role == "worker" and drained is not None:
                await _within(drained(), deadline.remaining_s(self._settings.drain_timeout_s))
            # Each keeps at least a second for those behind it.
            share_s = max(1.0, deadline.remaining_s() - (len(order) - place - 1))
            orderly &= await self._stop_one(self.slots[role], share_s)
        return orderly

    def kill_all(self) -> None:
        """SIGKILL to every child, without waiting."""
        self._stopping.set()
        for slot in self.slots.values():
            if slot.child is not None:
                slot.child.signal(signal.SIGKILL)

    def kill(self, role: str, why: str, pid: int | None = None) -> None:
        """SIGKILL to a child that does not answer, if it still has this `pid`; its keeper starts another."""
        child = self.slots[role].child
        if child is not None and not self._stopping.is_set() and pid in (None, child.pid):
            log.error(f"{role}: {why}", extra={"action": "child_killed", "role": role, "child_pid": child.pid})
            child.signal(signal.SIGKILL)

    async def _spawn(self, slot: Slot) -> None:
        async with self._spawning:
            if self._stopping.is_set():
                return
            slot.child = await Child.start(
                slot.role,
                self._command(slot.role),
                self._environment,
                self._monotonic_s(),
                self._relay,
                self._watch,
            )
            slot.healthy_since_s, slot.seen_ledger = None, {}
        CHILD_UP.labels(slot.role).set(1)
        log.info("child started", extra={"action": "child_started", "role": slot.role, "child_pid": slot.child.pid})

    async def _keep(self, slot: Slot) -> None:
        """Wait for the child's end and start another, until the stop."""
        while slot.child is not None:
            child = slot.child
            code = await child.wait()
            CHILD_UP.labels(slot.role).set(0)
            slot.child, slot.last_exit = None, code
            self._close_ledger(slot, child)
            if self._stopping.is_set():
                return
            if code in HOPELESS and child.url is None:
                raise ChildHopeless(slot.role, code)
            await self._pause(slot)
            if self._stopping.is_set():
                return
            slot.restarts += 1
            CHILD_RESTARTS.labels(slot.role).inc()
            await self._spawn(slot)

    def _close_ledger(self, slot: Slot, child: Child) -> None:
        """Keep what an ended child accounted for; of one that was killed, what was last seen of it."""
        # Only a producer generates; of one that was killed before anybody looked, not even that much is known.
        self.silent_deaths += child.ledger is None and (slot.role == "producer" or bool(slot.seen_ledger))
        into = self.crashed_ledger if child.ledger is None else self.closed_ledger
        last = slot.seen_ledger if child.ledger is None else child.ledger
        into.update({name: int(value) for name, value in last.items()})
        if last and slot.role == "producer":
            self.left_on_disk = on_disk(last)

    async def _pause(self, slot: Slot) -> None:
        healthy_s = 0.0 if slot.healthy_since_s is None else self._monotonic_s() - slot.healthy_since_s
        decision = after_death(self._policy, slot.deaths, healthy_s)
        slot.deaths = decision.deaths
        log.warning(
            f"{slot.role} ended ({_ending(slot.last_exit)}); it starts again in {decision.pause_s:g} s",
            extra={"action": "child_died", "role": slot.role, "exit_code": slot.last_exit, "deaths": slot.deaths},
        )
        await asyncio.sleep(decision.pause_s)

    async def _stop_one(self, slot: Slot, share_s: float) -> bool:
        keeper = self._keepers.get(slot.role)
        if keeper is None or keeper.done():
            return True
        if slot.child is None:  # it waits for its next start, which will not come
            keeper.cancel()
            await asyncio.wait({keeper})
            return True
        slot.child.signal(signal.SIGTERM)
        _, pending = await asyncio.wait({keeper}, timeout=share_s)
        if pending:
            log.error(
                f"{slot.role} did not stop within {share_s:.1f} s and is killed",
                extra={"action": "child_killed", "role": slot.role},
            )
            slot.child.signal(signal.SIGKILL)
            await asyncio.wait({keeper})
        return not pending


async def _within(work: Coroutine[Any, Any, None], timeout_s: float) -> None:
    task = asyncio.create_task(work)
    await asyncio.wait({task}, timeout=timeout_s)
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    elif task.exception():
        task.result()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
