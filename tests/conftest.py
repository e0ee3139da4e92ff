"""What every test may ask for: a clean environment and the one real broker of the run."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.helpers.broker import REUSE, TopicFactory, running_broker

KEPT = {REUSE}

# A busy machine is no failure of a law.
settings.register_profile("headrace", deadline=None)
settings.load_profile("headrace")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the developer's shell do not reach a test."""
    for name in list(os.environ):
        if (name.startswith("HEADRACE_") or name == "KAFKA_BOOTSTRAP_SERVERS") and name not in KEPT:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bootstrap server of a real Kafka, the same for the whole run."""
    with running_broker(tmp_path_factory.mktemp("kafka")) as bootstrap:
        yield bootstrap


@pytest.fixture
def new_topic(broker: str) -> Iterator[TopicFactory]:
    """Creates topics of random names on the broker and deletes them after the test."""
    factory = TopicFactory(broker)
    yield factory
    factory.delete_all()
