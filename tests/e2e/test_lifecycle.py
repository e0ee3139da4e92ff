"""Laws of the life of one process, with real processes on free ports."""

import json
import os
import signal
import socket
import subprocess

import pytest

from app.errors import EnvironmentError_
from app.http.server import Address, bind, bind_all
from app.supervisor_run import Run
from app.supervisor_screen import Screen
from tests.helpers.processes import answered, get
from tests.helpers.roles import command, plan, settings

pytestmark = pytest.mark.e2e


class Child:
    """A child as its supervisor has it: with a pipe for its announcements."""

    def __init__(self, mode: str, role: str = "producer") -> None:
        reading, writing = os.pipe()
        env = {**os.environ, "HEADRACE_ANNOUNCE_FD": str(writing), "HEADRACE_SUPERVISOR_PID": str(os.getpid())}
        self.process = subprocess.Popen(
            command(role, mode),
            pass_fds=(writing,),
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        os.close(writing)
        self._announced = os.fdopen(reading)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()
        self._announced.close()

    def announcement(self):
        return json.loads(self._announced.readline())

    def ended(self):
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output


def test_a_child_announces_itself_before_and_its_ledger_after():
    with Child("obey") as child:
        first = child.announcement()
        assert (first["pid"], first["role"]) == (child.process.pid, "producer")
        answered(f"{first['health_url']}/health/ready", 200)
        child.process.send_signal(signal.SIGTERM)
        assert child.announcement() == {"ledger": {"generated": 10.0, "acknowledged": 10.0}}
        assert child.ended()[0] == 0


def test_a_process_answers_before_it_is_ready():
    with Child("never_join") as child:
        url = child.announcement()["health_url"]
        assert answered(f"{url}/health/live", 200)["status"] == "ok"
        body = answered(f"{url}/health/ready", 503, lambda body: bool(body["checks"]))
        assert body["status"] == "starting"
        assert body["checks"]["recovered"]["detail"] == "no group yet"
        answered(f"{url}/health/startup", 503)


def test_a_stall_turns_readiness_off_and_then_ends_the_process():
    with Child("stall") as child:
        url = child.announcement()["health_url"]
        body = answered(f"{url}/health/ready", 503, lambda body: body["status"] == "not ready")
        assert "transform: 5 records wait" in body["checks"]["progress"]["detail"]
        code, output = child.ended()
        assert code == 1
        assert "none was processed" in output
        assert "Traceback" not in output


def test_a_role_that_will_not_stop_is_left_at_the_deadline():
    with Child("ignore_stop") as child:
        url = child.announcement()["health_url"]
        answered(f"{url}/health/ready", 200)
        child.process.send_signal(signal.SIGTERM)
        assert child.ended()[0] == 1


def test_a_stop_does_not_wait_for_a_start_that_does_not_end():
    """A coordinator that was told to stop while it started took all of its 13.5 s, and was killed."""
    with Child("come_up_for_ever", "coordinator") as child:
        url = child.announcement()["health_url"]
        answered(f"{url}/health/ready", 503, lambda body: bool(body["checks"]))
        child.process.send_signal(signal.SIGTERM)
        code, output = child.ended()
        assert code == 0, output
        assert "did not stop in time" not in output


def test_a_crash_is_an_exit_code_and_a_traceback_in_the_log():
    with Child("crash") as child:
        code, output = child.ended()
        assert code == 1
        assert "the roles crashed" in output


def test_a_child_without_its_supervisor_does_not_start():
    env = {**os.environ, "HEADRACE_SUPERVISOR_PID": "1"}
    done = subprocess.run(command("producer"), env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("section", "key"), [("http", "http.port"), ("health", "health.port"), ("metrics", "metrics.port")]
)
async def test_a_taken_port_is_one_clear_sentence(section, key):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EnvironmentError_) as refused:
            await Run(plan("obey", settings(**{section: {"port": port}})), Screen()).run()
    assert f"Port {port} on 127.0.0.1 is taken" in str(refused.value)
    assert f"set {key} to a free port" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_address_that_is_not_ours_is_one_clear_sentence():
    with pytest.raises(EnvironmentError_, match=r"203.0.113.7 is not an address of this machine: change health.host"):
        bind("203.0.113.7", 0, "the health endpoint", "health.port")


def test_all_ports_are_taken_or_none():
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Address("127.0.0.1", other.getsockname()[1], "it", "x.port")
        free = bind("127.0.0.1", 0, "it", "y.port")
        port = free.getsockname()[1]
        free.close()
        with pytest.raises(EnvironmentError_):
            bind_all(Address("127.0.0.1", port, "it", "y.port"), taken)
        bind("127.0.0.1", port, "it", "y.port").close()


def test_nobody_answers_after_the_end():
    with Child("obey") as child:
        url = child.announcement()["health_url"]
        child.process.send_signal(signal.SIGTERM)
        assert child.ended()[0] == 0
        assert get(f"{url}/health/live") is None
