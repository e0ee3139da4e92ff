"""A plot of bars without a library: as text, and as a small PNG."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

ROWS = 160
BAR = 6
INK, MARK, PAPER = 70, 170, 255
BLOCKS = " ▁▂▃▄▅▆▇█"


def as_text(bars: Sequence[float]) -> str:
    """One character a bar, the highest one full."""
    top = max(bars, default=0.0) or 1.0
    return "".join(BLOCKS[round(bar / top * (len(BLOCKS) - 1))] for bar in bars)


def write_png(path: Path, bars: Sequence[float], mark: int) -> None:
    """Bars in grey, from the left; the column before bar `mark` is marked."""
    top = max(bars, default=0.0) or 1.0
    heights = [round(bar / top * (ROWS - 1)) for bar in bars]
    rows = bytearray()
    for row in range(ROWS, 0, -1):
        rows.append(0)  # no filter
        for number, height in enumerate(heights):
            edge = MARK if number == mark else PAPER
            rows += bytes([edge, *[INK if height >= row else PAPER] * (BAR - 1)])
    header = struct.pack(">IIBBBBB", len(heights) * BAR, ROWS, 8, 0, 0, 0, 0)  # 8 bits of grey
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows), 9)), (b"IEND", b""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in parts))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
