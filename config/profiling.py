"""Settings of the profiling port."""

from typing import Literal

from config.section import Section, setting


class ProfilingSettings(Section):
    """Memory and CPU profiles on request; loopback only, because a profile shows the inside of the process."""

    enabled: bool = setting(default=False, description="Open the profiling port.")
    host: Literal["127.0.0.1", "::1", "localhost"] = setting(
        "127.0.0.1", description="Address to listen on; loopback only."
    )
    port: int = setting(6060, ge=0, le=65_535, unit="port", description="Port to listen on; 0 takes a free one.")
