"""Laws of the embedded Kafka: what it keeps through any end, and what it says when it cannot start."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from app.adapters import topics_admin
from app.adapters.embedded import EmbeddedKafka
from app.adapters.embedded.cache import cache_folder
from app.adapters.embedded.jars import read_lock
from app.adapters.embedded.java import find_java
from app.errors import EnvironmentError_
from config.topics import TopicSpec
from tests.helpers.broker import embedded_settings

pytestmark = pytest.mark.broker

PATIENCE_S = 30
TOPIC = TopicSpec("kept", "key", "none", retention_ms=-1, partitions=1)


async def write(kafka: EmbeddedKafka, values: list[bytes]) -> None:
    await topics_admin.ensure_topics(kafka.bootstrap, [TOPIC])
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all")
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(TOPIC.name, value)
    finally:
        await producer.stop()


async def read(kafka: EmbeddedKafka, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(TOPIC.name, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_records_and_cluster_are_kept_through_a_stop_and_a_kill(tmp_path: Path) -> None:
    settings = embedded_settings(tmp_path)
    async with EmbeddedKafka(settings) as kafka:
        await write(kafka, [b"1", b"2"])
    async with EmbeddedKafka(settings) as kafka:
        await write(kafka, [b"3"])
        (pid,) = kafka.pids.values()
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=PATIENCE_S)
        assert kafka.dead_nodes() == [1]
        await kafka.start_node(1)
        assert kafka.dead_nodes() == []
        assert await read(kafka, 3) == [b"1", b"2", b"3"]
    assert kafka.pids == {}


async def test_broker_is_on_loopback_only_and_in_a_session_of_its_own(tmp_path: Path) -> None:
    async with EmbeddedKafka(embedded_settings(tmp_path)) as kafka:
        (pid,) = kafka.pids.values()
        listening = [one.laddr.ip for one in psutil.Process(pid).net_connections() if one.status == "LISTEN"]
        assert listening
        assert all(ip.removeprefix("::ffff:") == "127.0.0.1" for ip in listening)
        assert os.getsid(pid) != os.getsid(0)


async def test_broker_dies_with_its_starter_and_its_folder_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import asyncio\n"
        "from pathlib import Path\n"
        "from app.adapters.embedded import EmbeddedKafka\n"
        "from tests.helpers.broker import embedded_settings\n"
        "async def main():\n"
        f"    async with EmbeddedKafka(embedded_settings(Path({str(tmp_path)!r}))) as kafka:\n"
        "        print(*kafka.pids.values(), flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as starter:  # noqa: ASYNC220 - nothing else runs
        assert starter.stdout is not None
        broker = psutil.Process(int(await asyncio.to_thread(starter.stdout.readline)))
        starter.kill()
        starter.wait()
    async with EmbeddedKafka(embedded_settings(tmp_path)) as kafka:
        assert broker.pid not in kafka.pids.values()
        assert not broker.is_running() or broker.status() == psutil.STATUS_ZOMBIE


async def test_folder_in_use_is_one_sentence(tmp_path: Path) -> None:
    kafka = EmbeddedKafka(embedded_settings(tmp_path))
    assert kafka._lock.acquire(0)
    with pytest.raises(EnvironmentError_, match=rf"in use by another Headrace \(process {os.getpid()}\)"):
        await EmbeddedKafka(embedded_settings(tmp_path)).start()
    kafka._lock.release()


async def test_taken_port_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        kafka = EmbeddedKafka(embedded_settings(tmp_path, port=server.getsockname()[1]))
        with pytest.raises(EnvironmentError_, match=r"Port \d+ is taken.*HEADRACE_EMBEDDED__PORT"):
            await kafka.start()
    assert kafka.pids == {}


async def test_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentError_, match=r"The disk of .* is full"):
        await EmbeddedKafka(embedded_settings(tmp_path, min_free_mib=1 << 30)).start()


async def test_folder_of_another_cluster_is_one_sentence(tmp_path: Path) -> None:
    settings = embedded_settings(tmp_path)
    async with EmbeddedKafka(settings) as kafka:
        await write(kafka, [b"1"])
    meta = tmp_path / "node-1" / "data" / "meta.properties"
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=2"))
    with pytest.raises(EnvironmentError_, match=r"Kafka did not start: .*") as caught:
        await EmbeddedKafka(settings).start()
    assert "\n" not in str(caught.value)


def a_cache_of_its_own(folder: Path) -> Path:
    """The user's jars, linked, so that a test may damage what else is in the cache."""
    own = folder / "cache" / f"kafka-{read_lock().version}"
    own.mkdir(parents=True)
    for jar in (cache_folder(None) / own.name).glob("*.jar"):
        (own / jar.name).symlink_to(jar)
    return own


async def test_class_archive_is_made_at_the_first_stop_and_a_damaged_one_stops_no_start(tmp_path: Path) -> None:
    find_java(None, cache_folder(None))
    own = a_cache_of_its_own(tmp_path)
    settings = embedded_settings(tmp_path / "data", cache_dir=str(own.parent))
    async with EmbeddedKafka(settings):
        assert list(own.glob("*.jsa")) == []
    (archive,) = own.glob("*.jsa")
    whole = archive.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:8192] + os.urandom(len(whole) - 8192)):
        archive.unlink(missing_ok=True)
        archive.write_bytes(damaged)
        async with EmbeddedKafka(settings) as kafka:
            await write(kafka, [b"1"])
    shutil.rmtree(own)


async def test_start_that_takes_too_long_is_one_sentence_and_leaves_no_process(tmp_path: Path) -> None:
    kafka = EmbeddedKafka(embedded_settings(tmp_path, start_timeout_s=0.01))
    with pytest.raises(EnvironmentError_, match=r"not ready after 0\.01 s \(embedded\.start_timeout_s\)"):
        await kafka.start()
    assert kafka.dead_nodes() == [1]
