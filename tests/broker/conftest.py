"""A broker of their own for the tests that use the service's real topics."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.adapters.embedded import EmbeddedKafka
from tests.helpers.broker import KEEPS_ALL, embedded_settings
from tests.helpers.cli import Headrace


@pytest.fixture(scope="module")
def module_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bootstrap server of a Kafka that only the tests of one module use, under the service's own topic names."""
    kafka = EmbeddedKafka(embedded_settings(tmp_path_factory.mktemp("module-kafka")), overrides=KEEPS_ALL)
    asyncio.run(kafka.start())
    try:
        yield kafka.bootstrap
    finally:
        asyncio.run(kafka.stop())


@pytest.fixture
def headrace(module_broker: str, tmp_path: Path) -> Headrace:
    """The command line in an empty folder against the broker of the module."""
    return Headrace(tmp_path, module_broker)
