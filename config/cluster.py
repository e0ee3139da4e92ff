"""Settings of the cluster: who a node is, and how soon one that is gone is noticed."""

from pydantic import model_validator

from config.section import Section, setting


class ClusterSettings(Section):
    """A node is one `headrace up` with its processes, or one `headrace worker`; Kafka's groups are the cluster."""

    enabled: bool = setting(
        default=True,
        description="Watch over the other nodes and over one's own processes, and take the dead out of their groups"
        " at once. Off, Kafka's session time-out alone decides.",
    )
    node_id: str = setting(
        "",
        max_length=200,
        pattern=r"^[A-Za-z0-9._-]*$",
        description="Name of this node, its own in the cluster; empty: made of the host's name, the data folder, roles"
        " and ports.",
    )
    beat_interval_ms: int = setting(
        100, ge=10, le=10_000, unit="ms", description="Between two beats of a process or of a node."
    )
    frozen_after_ms: int = setting(
        400,
        ge=50,
        le=60_000,
        unit="ms",
        description="A process of this node that stands still and has not beaten for this long loses its partitions.",
    )
    frozen_kill_after_s: float = setting(
        5.0,
        gt=0,
        le=3_600,
        unit="s",
        description="A process that stands still for this long is killed and started again.",
    )
    unreachable_after_ms: int = setting(
        500,
        ge=100,
        le=600_000,
        unit="ms",
        description="A node that nobody has heard for this long loses its partitions; a process that is gone does"
        " at once.",
    )
    host: str = setting("127.0.0.1", min_length=1, description="Address for the beats of other nodes to come in at.")
    port: int = setting(0, ge=0, le=65_535, unit="port", description="Port for those beats; 0 takes a free one.")
    advertised_host: str = setting(
        "", max_length=253, description="What other nodes call this host; empty: the address of `host`."
    )
    standby_replicas: int = setting(
        1, ge=0, le=10, unit="replicas", description="Further nodes that keep a partition's tables warm."
    )
    join_wait_ms: int = setting(
        1_500,
        ge=100,
        le=60_000,
        unit="ms",
        description="A node that joins waits no longer than this for the others to say that they are there.",
    )
    refresh_interval_s: float = setting(
        5.0, gt=0, le=3_600, unit="s", description="A node says that it is there at least this often (cluster.members)."
    )
    silent_after_s: float = setting(
        20.0,
        gt=0,
        le=86_400,
        unit="s",
        description="A node that was not heard for this long, while others were, is shown as unreachable.",
    )
    forget_after_s: float = setting(
        300.0,
        gt=0,
        le=2_592_000,
        unit="s",
        description="An unreachable node that was silent for this long is no longer shown.",
    )
    allow_version_mix: bool = setting(
        default=False,
        description="Let a node join a cluster of another major version. Another minor one may join in any case.",
    )
    max_clock_skew_s: float = setting(
        5.0,
        gt=0,
        le=86_400,
        unit="s",
        description="A clock that differs by more from the broker's or another node's is warned about.",
    )

    @model_validator(mode="after")
    def _patient(self) -> "ClusterSettings":
        shortest = min(self.frozen_after_ms, self.unreachable_after_ms)
        if shortest < 2 * self.beat_interval_ms:
            raise ValueError("frozen_after_ms and unreachable_after_ms must be at least twice beat_interval_ms")
        if self.silent_after_s < 2 * self.refresh_interval_s:
            raise ValueError("silent_after_s must be at least twice refresh_interval_s")
        return self
