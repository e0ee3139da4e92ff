"""Laws of `headrace produce` as a process: Ctrl-C loses nothing, recordings arrive whole, orders are obeyed."""

import asyncio
import json
import re
import signal

import orjson
import psutil
import pytest
from aiokafka import AIOKafkaProducer

from config.topics import DEVICE_COMMANDS, DEVICE_DEADLETTER, DEVICE_TELEMETRY, DEVICE_TRUTH
from tests.helpers.cli import DATA, Headrace
from tests.helpers.processes import get, until
from tests.helpers.records import count, values

pytestmark = pytest.mark.broker

MAPPING = """
time: {column: at, format: epoch_ms}
device: {id: "rec-{file}"}
metrics: [{metric: temperature, column: temp, unit: CEL}]
labels: {columns: {anomaly: bad}}
"""


def test_ctrl_c_stops_in_order_and_the_ledger_balances(headrace: Headrace) -> None:
    assert headrace("topics", "declare").code == 0
    before = count(headrace.bootstrap, DEVICE_TELEMETRY.name)
    with headrace.running("produce", "--devices", "100", "--interval-ms", "50") as running:
        running.said("100 devices to")
        until(lambda: count(headrace.bootstrap, DEVICE_TELEMETRY.name) > before + 1_000, "samples are on the topic")
        running.signal(signal.SIGINT)
        assert running.ended() == 0, running.output
    ledger = re.search(r"Ledger balanced: ([\d,]+) generated, ([\d,]+) acknowledged, .* 0 in flight", running.output)
    assert ledger is not None, running.output
    assert ledger[1] == ledger[2]
    assert count(headrace.bootstrap, DEVICE_TELEMETRY.name) == before + int(ledger[1].replace(",", ""))
    assert "Traceback" not in running.output


def test_it_runs_for_the_time_it_is_given_and_tells_the_ledger_to_programs(headrace: Headrace) -> None:
    answer = headrace("produce", "--devices", "20", "--interval-ms", "100", "--seconds", "1", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["balanced"] is True
    assert answer.json["generated"] == answer.json["outcomes"]["acknowledged"] > 20
    assert answer.json["in_flight"] == 0


def listening(pid: int) -> list[int]:
    found = psutil.Process(pid).net_connections("tcp")
    return [one.laddr.port for one in found if one.status == psutil.CONN_LISTEN]


def test_it_opens_no_port_unless_asked_and_then_that_one(headrace: Headrace) -> None:
    before = count(headrace.bootstrap, DEVICE_TELEMETRY.name)
    with headrace.running("produce", "--devices", "5", "--interval-ms", "100") as running:
        until(lambda: count(headrace.bootstrap, DEVICE_TELEMETRY.name) > before, "samples flow")
        assert listening(running.pid) == []
    with headrace.running("produce", "--devices", "5", "--metrics-port", "0") as running:
        url = running.said(r"Metrics at (\S+)")[1]
        found = until(lambda: get(url), "the metrics")
        assert "device_data_generated_total" in found.text
        assert listening(running.pid) == [int(url.rsplit(":", 1)[1].removesuffix("/metrics"))]
        taken = headrace("produce", "--devices", "1", "--metrics-port", str(listening(running.pid)[0]))
        assert taken.code == 3
        assert "is taken" in taken.err
        running.signal(signal.SIGTERM)
        assert running.ended() == 0


def test_a_replay_is_whole_with_bad_rows_apart_and_an_end(headrace: Headrace) -> None:
    (headrace.folder / "m.yaml").write_text(MAPPING)
    rows = [f"{1_577_836_800_000 + n * 1000},{n},{int(20 <= n < 30)}" for n in range(500)]
    rows[100] = "soon,1,0"
    for name in ("one", "two"):
        (headrace.folder / f"{name}.csv").write_text("\n".join(["at,temp,bad", *rows]))
    before = {topic.name: count(headrace.bootstrap, topic.name) for topic in (DEVICE_TELEMETRY, DEVICE_TRUTH)}
    options = ("--mapping", "m.yaml", "--speed", "0", "--times", "keep", "--json")
    answer = headrace("produce", "--replay", "one.csv", "two.csv", *options)
    assert answer.code == 0, answer.err
    assert answer.json["outcomes"] == {"acknowledged": 998, "dead_lettered": 2}
    samples = values(headrace.bootstrap, DEVICE_TELEMETRY.name)
    recorded = [each for each in map(orjson.loads, samples) if each["device_id"].startswith("rec-")]
    assert len(recorded) == 998
    assert recorded[0]["source_timestamp"] == 1_577_836_800_000
    assert count(headrace.bootstrap, DEVICE_TRUTH.name) == before[DEVICE_TRUTH.name] + 4
    letters = [orjson.loads(value) for value in values(headrace.bootstrap, DEVICE_DEADLETTER.name)]
    assert sorted(each["file"] for each in letters if each["line"] == 102) == ["one.csv", "two.csv"]


@pytest.mark.skipif(not DATA.exists(), reason="the recorded files are not here")
def test_the_recorded_files_are_replayed_whole(headrace: Headrace) -> None:
    files = [str(DATA / "skab" / f"valve1_{n}.csv") for n in (0, 1)]
    rows = sum(len((DATA / "skab" / f"valve1_{n}.csv").read_text().splitlines()) - 1 for n in (0, 1))
    answer = headrace("produce", "--replay", *files, "--mapping", "skab-valve", "--speed", "0", "--json")
    assert (answer.code, answer.json["generated"], answer.json["balanced"]) == (0, rows, True)


def test_a_fleet_at_a_prompt_obeys_orders(headrace: Headrace) -> None:
    async def order() -> None:
        command = {"command_id": "c-1", "command": "stop", "scope": "all", "issued_at": 1}
        async with AIOKafkaProducer(bootstrap_servers=headrace.bootstrap) as producer:
            await producer.send_and_wait(DEVICE_COMMANDS.name, json.dumps(command).encode(), key=b"all")

    before = count(headrace.bootstrap, DEVICE_TELEMETRY.name)
    with headrace.running("produce", "--devices", "3", "--interval-ms", "100", "--set=log.format=json") as running:
        # The tail begins at the end of the topic: whatever is sent once samples flow and it listens is obeyed.
        until(lambda: count(headrace.bootstrap, DEVICE_TELEMETRY.name) > before + 30, "samples flow")
        asyncio.run(order())
        running.said('"action":"device_command"')
        running.signal(signal.SIGINT)
        assert running.ended() == 0


def test_an_absent_broker_is_one_sentence(headrace: Headrace) -> None:
    answer = headrace("produce", "--bootstrap", "127.0.0.1:1", "--set=kafka.startup_timeout_s=0.2")
    assert answer.code == 4
    assert answer.err.splitlines()[-1].startswith("headrace: No Kafka broker answers at 127.0.0.1:1")
    assert "Traceback" not in answer.err


def test_a_stop_while_the_broker_is_awaited_is_heard(headrace: Headrace) -> None:
    with headrace.running("produce", "--bootstrap", "127.0.0.1:1", "--set=log.format=json") as running:
        running.said("broker_awaited")
        running.signal(signal.SIGINT)
        assert running.ended() == 130
