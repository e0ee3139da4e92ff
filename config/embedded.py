"""Settings of the embedded Kafka broker."""

from config.section import Section, setting


class EmbeddedSettings(Section):
    """The Apache Kafka that is started here when `kafka.bootstrap_servers` is empty; it listens on loopback only."""

    port: int = setting(9092, ge=0, le=65_535, description="Port of the broker on 127.0.0.1; 0 takes a free one.")
    controller_port: int = setting(
        0, ge=0, le=65_535, description="Port of the KRaft controller on 127.0.0.1; 0 takes a free one."
    )
    data_dir: str = setting(
        ".headrace/kafka", min_length=1, description="Folder of topics and logs, kept between runs."
    )
    cache_dir: str | None = setting(
        None, description="Folder of downloaded jars; null: headrace in the user's cache folder."
    )
    java_home: str | None = setting(
        None, description="Java 17 or newer to use; null: JAVA_HOME, PATH, else one is downloaded."
    )
    heap_mib: int = setting(512, ge=128, le=65_536, unit="MiB", description="Heap of the broker at most (-Xmx).")
    min_free_mib: int = setting(
        256, ge=0, le=1 << 30, unit="MiB", description="With less room on the disk of data_dir no broker is started."
    )
    message_max_bytes: int = setting(
        4_194_304,
        ge=1_024,
        le=1 << 30,
        unit="bytes",
        description="Largest record batch the broker takes, compressed (message.max.bytes).",
    )
    start_timeout_s: float = setting(
        60.0, gt=0, le=600, unit="s", description="A broker that is not ready by then has failed."
    )
    stop_timeout_s: float = setting(
        20.0, gt=0, le=600, unit="s", description="A broker that has not stopped by then is killed; nothing is lost."
    )
