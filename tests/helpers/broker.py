"""The real broker of a test run: one embedded Kafka for all tests, and topics of random names on it."""

import asyncio
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from app.adapters import topics_admin
from app.adapters.embedded import EmbeddedKafka
from config.embedded import EmbeddedSettings
from config.kafka import KafkaSettings
from config.topics import TopicSpec

# A developer's own broker, to save the start: its bootstrap servers.
REUSE = "HEADRACE_TEST_BOOTSTRAP"
# Records of tests are of a day in the past: the broker's first look for what is past its retention, 30 s after the
# start, would delete them while a test reads them.
KEEPS_ALL = {"log.initial.task.delay.ms": "86400000", "log.retention.check.interval.ms": "86400000"}


def embedded_settings(folder: Path, **overrides: object) -> EmbeddedSettings:
    """Free ports, a temporary data folder, the user's own cache."""
    return EmbeddedSettings(**{"port": 0, "data_dir": str(folder), "heap_mib": 384, **overrides})


@contextmanager
def running_broker(folder: Path) -> Iterator[str]:
    """Yield the bootstrap server of a broker that ends with the block.

    `TestTopics` of a reused broker deletes its topics; an embedded one disappears with its folder.
    """
    reused = os.environ.get(REUSE)
    if reused:
        yield reused
        return
    kafka = EmbeddedKafka(embedded_settings(folder), overrides=KEEPS_ALL)
    asyncio.run(kafka.start())
    try:
        yield kafka.bootstrap
    finally:
        asyncio.run(kafka.stop())


class TopicFactory:
    """Creates topics of random names: `name = new_topic(partitions=4, **{"cleanup.policy": "compact"})`."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._created: list[str] = []

    def __call__(self, partitions: int = 4, name: str | None = None, **config: str) -> str:
        """The name of a new topic. Works inside and outside of a running event loop."""
        topic = name or f"test-{uuid.uuid4().hex[:12]}"
        config = {key.replace("_", "."): value for key, value in config.items()}
        cleanup = config.pop("cleanup.policy", "delete")
        retention_ms = int(config.pop("retention.ms", "-1"))
        spec = TopicSpec(topic, "test", "test", cleanup, retention_ms, partitions, config)  # type: ignore[arg-type]
        _apart(topics_admin.ensure_topics(self._bootstrap, [spec], KafkaSettings()))
        self._created.append(topic)
        return topic

    def delete_all(self) -> None:
        if self._created:
            _apart(topics_admin.delete_topics(self._bootstrap, self._created, KafkaSettings()))


def _apart(work: object) -> None:
    """Run a coroutine to its end in a loop of its own, on a thread of its own when one runs here already."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work)  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001 - raised again below
            failure.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
