"""Health of one process: small registered checks, and the reports made of them."""

import logging
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from app.domain.watchdog import Progress

log = logging.getLogger(__name__)

Probe = Literal["startup", "ready", "guard"]
Part = Literal["summary", "live", "startup", "ready"]


class Check(NamedTuple):
    """The answer of one check; `detail` is for people."""

    ok: bool
    detail: str = ""


class Report(NamedTuple):
    """A verdict with what it was made of."""

    ok: bool
    status: str
    checks: dict[str, Check]


class HealthRegistry:
    """The checks of one process.

    A `startup` check covers what happens once (joining, recovery): when all have passed together
    once, startup is over for good. A `ready` check is asked every time. A process without any
    ready check is not ready: its roles have not come up yet. A `guard` is asked with the ready
    checks, but having one does not mean that a role has come up.
    """

    def __init__(self, roles: frozenset[str], version: str, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self.roles = roles
        self.version = version
        self._monotonic_s = monotonic_s
        self._started_s = monotonic_s()
        self._checks: dict[Probe, dict[str, Callable[[], Check]]] = {"startup": {}, "ready": {}, "guard": {}}
        self._progress: dict[str, Callable[[], Progress]] = {}
        self._startup_over = False
        self._stopping = False

    def add(self, name: str, check: Callable[[], Check], probe: Probe = "ready") -> None:
        """Register `check` under `name`, replacing one of that name; it must not block."""
        self._checks[probe][name] = check

    def remove(self, name: str) -> None:
        for checks in self._checks.values():
            checks.pop(name, None)

    def watch(self, name: str, progress: Callable[[], Progress]) -> None:
        """Let the watchdog follow a stage; see app/domain/watchdog.py."""
        self._progress[name] = progress

    def unwatch(self, name: str) -> None:
        self._progress.pop(name, None)

    @property
    def watched(self) -> dict[str, Callable[[], Progress]]:
        return dict(self._progress)

    def stopping(self) -> None:
        """From now on the process is not ready, so that nobody sends it new work."""
        self._stopping = True

    def live(self) -> Report:
        """That this runs at all shows that the event loop turns."""
        return Report(ok=True, status="ok", checks={})

    def startup(self) -> Report:
        checks = self._ask("startup")
        if not self._startup_over:
            self._startup_over = bool(self._checks["ready"]) and all(check.ok for check in checks.values())
        return Report(self._startup_over, "ok" if self._startup_over else "starting", checks)

    def ready(self) -> Report:
        started = self.startup()
        roles = self._ask("ready")
        checks = {**roles, **self._ask("guard")}
        if self._stopping:
            return Report(ok=False, status="stopping", checks=checks)
        if not started.ok:
            return Report(ok=False, status="starting", checks={**started.checks, **checks})
        ok = bool(roles) and all(check.ok for check in checks.values())
        return Report(ok, "ok" if ok else "not ready", checks)

    def report(self, part: Part) -> tuple[int, dict[str, Any]]:
        """The HTTP status and the JSON document of a probe, or of the summary of all."""
        found = {"live": self.live, "startup": self.startup}.get(part, self.ready)()
        checks = {**self._ask("startup"), **found.checks} if part == "summary" else found.checks
        body: dict[str, Any] = {
            "status": found.status,
            "checks": {name: check._asdict() for name, check in sorted(checks.items())},
        }
        if part == "summary":
            body["roles"] = sorted(self.roles)
            body["version"] = self.version
            body["uptime_s"] = round(self._monotonic_s() - self._started_s, 1)
        return (200 if found.ok else 503), body

    def _ask(self, probe: Probe) -> dict[str, Check]:
        return {name: _answer(name, check) for name, check in self._checks[probe].items()}


def _answer(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # a broken check is a failed check, and health must still answer
        log.exception("a health check failed to answer", extra={"action": "health_check_failed", "check": name})
        return Check(ok=False, detail=f"the check itself failed: {error}")
