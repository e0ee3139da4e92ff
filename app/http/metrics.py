"""The Prometheus exposition of a registry, in the text format or in OpenMetrics as `Accept` asks."""

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The body and its content type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
