"""The real clocks."""

import time


class SystemClock:
    """Wall time in milliseconds UTC, and a clock that only goes forward (it runs on while a process is stopped)."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds since some instant."""
        return time.monotonic()
