"""An Apache Kafka of our own, for a laptop and for the tests."""

from app.adapters.embedded.cluster import EmbeddedKafka

__all__ = ["EmbeddedKafka"]
