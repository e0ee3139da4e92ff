"""The settings in force as `/config` shows them."""

from typing import Any

from app.metrics import CONFIG_INFO
from config.load import effective, fingerprint
from config.settings import Settings


def document(settings: Settings) -> dict[str, Any]:
    """Effective values, secrets redacted, with their hash."""
    return {"hash": fingerprint(settings), "settings": effective(settings)}


def publish_hash(settings: Settings) -> None:
    """Set the metric `config_info`, which a reload sets anew."""
    CONFIG_INFO.clear()
    CONFIG_INFO.labels(fingerprint(settings)).set(1)
