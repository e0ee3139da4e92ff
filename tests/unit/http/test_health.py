"""Laws of the health of one process."""

from app.http.health import Check, HealthRegistry

OK = Check(ok=True, detail="fine")
BAD = Check(ok=False, detail="not yet")


def _broken() -> Check:
    raise ZeroDivisionError("division by zero")


def _registry() -> HealthRegistry:
    return HealthRegistry(frozenset({"worker"}), "1.0", monotonic_s=lambda: 5.0)


def test_a_process_without_roles_that_came_up_is_live_and_not_ready():
    health = _registry()
    assert health.report("live")[0] == 200
    assert health.report("startup")[0] == 503
    assert health.report("ready")[0] == 503


def test_a_guard_alone_makes_nothing_ready():
    health = _registry()
    health.add("progress", lambda: OK, probe="guard")
    assert not health.ready().ok


def test_ready_waits_for_the_startup_checks():
    health, recovery = _registry(), [BAD]
    health.add("recovered", lambda: recovery[0], probe="startup")
    health.add("joined", lambda: OK)
    assert health.ready().status == "starting"
    recovery[0] = OK
    assert health.ready().ok


def test_startup_once_over_stays_over():
    health, recovery = _registry(), [OK]
    health.add("recovered", lambda: recovery[0], probe="startup")
    health.add("joined", lambda: OK)
    assert health.startup().ok
    recovery[0] = BAD
    assert health.startup().ok
    assert health.ready().ok


def test_a_guard_that_fails_turns_readiness_off():
    health, progress = _registry(), [OK]
    health.add("joined", lambda: OK)
    health.add("progress", lambda: progress[0], probe="guard")
    assert health.ready().ok
    progress[0] = BAD
    assert health.report("ready")[1]["checks"]["progress"] == {"ok": False, "detail": "not yet"}
    assert health.report("ready")[0] == 503


def test_a_stopping_process_is_not_ready():
    health = _registry()
    health.add("joined", lambda: OK)
    health.stopping()
    assert health.ready().status == "stopping"


def test_a_check_that_breaks_is_a_failed_check(caplog):
    health = _registry()
    health.add("joined", _broken)
    status, body = health.report("summary")
    assert status == 503
    assert "division" in body["checks"]["joined"]["detail"]
    assert caplog.records


def test_the_summary_tells_roles_version_and_uptime():
    health = _registry()
    health.add("joined", lambda: OK)
    status, body = health.report("summary")
    assert status == 200
    assert body == {
        "status": "ok",
        "roles": ["worker"],
        "version": "1.0",
        "uptime_s": 0.0,
        "checks": {"joined": {"ok": True, "detail": "fine"}},
    }
