"""Settings of the device fleet."""

from typing import Literal

from pydantic import model_validator

from config.section import Section, setting

DeviceType = Literal["press", "pump", "compressor", "motor", "furnace", "cnc_mill"]
FaultKind = Literal[
    "spike",
    "stuck",
    "drift",
    "dropout",
    "out_of_range",
    "clock_skew",
    "late",
    "out_of_order",
    "duplicate",
    "burst",
]


class DeviceSettings(Section):
    """The simulated fleet: how many devices, how often, how noisy and how faulty."""

    count: int = setting(1000, ge=0, le=100_000, unit="devices", description="Devices in the fleet.")
    sample_interval_ms: int = setting(
        1000, ge=10, le=86_400_000, unit="ms", reload="hot", description="Time between two samples of a device."
    )
    data_variation: float = setting(
        0.1,
        ge=0.0,
        le=10.0,
        unit="share",
        reload="hot",
        description="How far signals move, as a share of a metric's normal range; 0 is a flat line.",
    )
    seed: int = setting(
        1,
        ge=0,
        le=(1 << 53) - 1,
        unit="number",
        description="The same seed gives the same devices, readings and faults, bit for bit.",
    )
    mix: dict[DeviceType, float] = setting(
        default_factory=lambda: {
            "press": 1.0,
            "pump": 2.0,
            "compressor": 1.0,
            "motor": 3.0,
            "furnace": 0.5,
            "cnc_mill": 1.5,
        },
        description="Weight of each device type in the fleet; a type that is left out or 0 is not there.",
    )
    sites: list[str] = setting(
        default_factory=lambda: ["plant-a", "plant-b"],
        min_length=1,
        max_length=1000,
        description="Sites over which the devices are spread.",
    )
    lines_per_site: int = setting(4, ge=1, le=10_000, unit="lines", description="Production lines of each site.")
    fault_interval_ms: int = setting(
        3_600_000,
        ge=0,
        le=30 * 86_400_000,
        unit="ms",
        description="Each device has one planned fault in every such interval; 0 plans none.",
    )
    fault_kinds: list[FaultKind] = setting(
        default_factory=lambda: [
            "spike",
            "stuck",
            "drift",
            "dropout",
            "out_of_range",
            "clock_skew",
            "late",
            "out_of_order",
            "duplicate",
            "burst",
        ],
        min_length=1,
        max_length=100,
        description="Kinds that the plan draws from, all as likely; a kind that is named twice is twice as likely.",
    )
    fault_min_duration_ms: int = setting(
        30_000, ge=1, le=86_400_000, unit="ms", description="Shortest planned fault, but for spikes of three samples."
    )
    fault_max_duration_ms: int = setting(
        300_000, ge=1, le=86_400_000, unit="ms", description="Longest planned fault; never longer than its interval."
    )
    tick_ms: int = setting(
        5, ge=1, le=1000, unit="ms", reload="hot", description="How often the fleet looks for samples that are due."
    )
    max_tick_samples: int = setting(
        2000,
        ge=1,
        le=1_000_000,
        unit="samples",
        reload="hot",
        description="Samples made in one tick at most; more are made in the next, with other work between.",
    )
    when_full: Literal["delay", "drop"] = setting(
        "delay",
        reload="hot",
        description="What a full producer does to samples that are due: make them later, or drop and count them.",
    )
    max_catch_up_ms: int = setting(
        30_000,
        ge=0,
        le=86_400_000,
        unit="ms",
        reload="hot",
        description="Samples due for longer than this are dropped and counted instead of made late.",
    )
    max_held_samples: int = setting(
        100_000,
        ge=0,
        le=10_000_000,
        unit="samples",
        description="Samples that transport faults keep back at most; a further one is sent at once.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "DeviceSettings":
        if not any(weight > 0 for weight in self.mix.values()):
            raise ValueError("mix must give at least one device type a weight above 0")
        if any(weight < 0 for weight in self.mix.values()):
            raise ValueError("mix must not have weights below 0")
        if self.fault_min_duration_ms > self.fault_max_duration_ms:
            raise ValueError("fault_min_duration_ms must not be above fault_max_duration_ms")
        return self
