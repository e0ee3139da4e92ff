"""Settings of the connection to Kafka."""

from typing import Literal

from pydantic import SecretStr

from config.section import Section, setting


class KafkaSettings(Section):
    """Which Kafka to talk to and how patient to be with it."""

    bootstrap_servers: str = setting(
        "",
        pattern=r"^\s*$|^[^\s,:]+:\d+(\s*,\s*[^\s,:]+:\d+)*$|^\[[0-9a-fA-F:]+\]:\d+$",
        form="host:port, several of them with commas",
        description="host:port[,host:port…] of the Kafka to use; empty starts the embedded one "
        "(also set by KAFKA_BOOTSTRAP_SERVERS).",
    )
    client_id: str = setting(
        "headrace", min_length=1, max_length=200, description="Name in the broker's logs and quotas."
    )
    partitions: int = setting(
        4, ge=1, le=10_000, unit="partitions", description="Partitions of a new topic; existing topics keep theirs."
    )
    replication_factor: int | None = setting(
        None,
        ge=1,
        le=15,
        unit="replicas",
        description="Copies of each partition of a new topic; null: the broker's own.",
    )
    startup_timeout_s: float = setting(
        60.0, gt=0, le=3600, unit="s", description="How long a start waits for a broker that does not answer yet."
    )
    request_timeout_ms: int = setting(
        15_000, ge=100, le=600_000, unit="ms", description="A request that the broker has not answered by then failed."
    )
    retry_backoff_ms: int = setting(
        100, ge=1, le=60_000, unit="ms", description="Wait before a failed request is repeated."
    )
    metadata_max_age_ms: int = setting(
        60_000, ge=1_000, le=3_600_000, unit="ms", description="Topics and leaders are asked for again after this long."
    )
    session_timeout_ms: int = setting(
        10_000,
        ge=500,
        le=1_800_000,
        unit="ms",
        description="A consumer not heard of for this long loses its partitions.",
    )
    heartbeat_interval_ms: int = setting(
        40, ge=10, le=600_000, unit="ms", description="Between heartbeats of a consumer; how soon it sees a rebalance."
    )
    max_poll_interval_ms: int = setting(
        3_600_000,
        ge=1_000,
        le=86_400_000,
        unit="ms",
        description="A consumer that is this long without a poll is expelled.",
    )
    rebalance_timeout_ms: int = setting(
        10_000,
        ge=500,
        le=600_000,
        unit="ms",
        description="Time of a consumer to give back its partitions in a rebalance.",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = setting(
        "PLAINTEXT", description="How connections to the broker are secured."
    )
    ssl_ca_file: str | None = setting(None, description="Certificates to trust, PEM; null: those of the system.")
    ssl_certificate_file: str | None = setting(None, description="The client's own certificate, PEM.")
    ssl_key_file: str | None = setting(None, description="The key of the client's own certificate, PEM.")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = setting(
        "PLAIN", description="How user name and password are proved."
    )
    sasl_username: str | None = setting(None, description="User name for SASL.")
    sasl_password: SecretStr | None = setting(None, description="Password for SASL.")
