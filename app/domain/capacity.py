"""Memory and CPU of the producer for a load: the manual's formulas, and coefficients fitted to observations."""

from collections.abc import Sequence
from typing import NamedTuple

# The service levels: memory under 80 % and CPU under 70 % of the limits that are set.
MEMORY_SHARE = 0.8
CPU_SHARE = 0.7


class Load(NamedTuple):
    """What is to be carried."""

    devices: int
    messages_per_s: float
    buffered_records: int


class Coefficients(NamedTuple):
    """Of memory = base + a·devices + b·buffered records, and CPU = base + c·(messages/s ÷ 1000)."""

    base_memory_mb: float
    memory_mb_per_device: float
    memory_mb_per_buffered_record: float
    base_cpu_millicores: float
    cpu_millicores_per_1000_messages: float


class Need(NamedTuple):
    """What the load takes, and the limits under which that stays within the service levels."""

    memory_mb: float
    cpu_millicores: float
    memory_limit_mb: float
    cpu_limit_millicores: float


class Observation(NamedTuple):
    """One measured load."""

    load: Load
    memory_mb: float
    cpu_millicores: float


# The reference manual's: 1,000 devices at 10,000 messages/s with a second of buffer are 2,266 MB and 200 m.
REFERENCE = Coefficients(256.0, 2.0, 0.001, 100.0, 10.0)


def need(load: Load, by: Coefficients) -> Need:
    """Memory in MB and CPU in millicores for `load`."""
    memory_mb = (
        by.base_memory_mb
        + by.memory_mb_per_device * load.devices
        + by.memory_mb_per_buffered_record * load.buffered_records
    )
    cpu = by.base_cpu_millicores + by.cpu_millicores_per_1000_messages * load.messages_per_s / 1000
    return Need(memory_mb, cpu, memory_mb / MEMORY_SHARE, cpu / CPU_SHARE)


def fitted(observations: Sequence[Observation]) -> Coefficients:
    """Coefficients by least squares; a slope that noise made negative is 0.

    Raises ValueError when the observations do not tell the influences apart (two different loads for
    CPU; different devices and buffers for memory).
    """
    memory = _least_squares(
        [(1.0, float(o.load.devices), float(o.load.buffered_records)) for o in observations],
        [o.memory_mb for o in observations],
    )
    cpu = _least_squares(
        [(1.0, o.load.messages_per_s / 1000) for o in observations], [o.cpu_millicores for o in observations]
    )
    return Coefficients(*(max(0.0, value) for value in (*memory, *cpu)))


def _least_squares(rows: Sequence[tuple[float, ...]], values: Sequence[float]) -> list[float]:
    """Solve the normal equations; columns are scaled first, as devices and records differ by magnitudes."""
    width = len(rows[0]) if rows else 0
    scales = [max((abs(row[i]) for row in rows), default=0.0) or 1.0 for i in range(width)]
    scaled = [[value / scale for value, scale in zip(row, scales, strict=True)] for row in rows]
    matrix = [
        [sum(row[i] * row[j] for row in scaled) for j in range(width)]
        + [sum(row[i] * value for row, value in zip(scaled, values, strict=True))]
        for i in range(width)
    ]
    return [solution / scale for solution, scale in zip(_solved(matrix), scales, strict=True)]


def _solved(matrix: list[list[float]]) -> list[float]:
    """Gaussian elimination with pivoting of a small square system with its right side as last column."""
    size = len(matrix)
    if not size:
        raise ValueError("no observation")
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(matrix[row][column]))
        if abs(matrix[pivot][column]) < 1e-9:
            raise ValueError("the observations do not tell the influences apart")
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        for row in range(size):
            if row != column:
                factor = matrix[row][column] / matrix[column][column]
                matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[column], strict=True)]
    return [matrix[row][size] / matrix[row][row] for row in range(size)]
