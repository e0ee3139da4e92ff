"""How aiokafka's clients are told to connect: the security part of their options, from the settings."""

import ssl
from typing import Any

from app.errors import EnvironmentError_
from config.kafka import KafkaSettings


def security_options(settings: KafkaSettings) -> dict[str, Any]:
    """Options that every aiokafka client takes; empty for plain connections.

    Raises `EnvironmentError_` when a certificate or key cannot be read.
    """
    options: dict[str, Any] = {"security_protocol": settings.security_protocol}
    if settings.security_protocol == "PLAINTEXT":
        return options
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        password = settings.sasl_password.get_secret_value() if settings.sasl_password else None
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": password,
        }
    return options


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ssl_ca_file)
        if settings.ssl_certificate_file:
            context.load_cert_chain(settings.ssl_certificate_file, settings.ssl_key_file)
    except (OSError, ssl.SSLError) as error:
        raise EnvironmentError_(
            f"The certificates for Kafka cannot be used: {error}; check kafka.ssl_ca_file, "
            "kafka.ssl_certificate_file and kafka.ssl_key_file."
        ) from error
    return context
