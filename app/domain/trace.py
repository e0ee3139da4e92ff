"""The context of a trace as W3C writes it, and a span as it is once it has ended."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Kind = Literal["internal", "server", "client", "producer"]
Value = str | int | float | bool

HEADER: Final = "traceparent"
# https://www.w3.org/TR/trace-context/: version, trace id, id of the parent span, flags; version ff is none.
_HEADER: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED: Final = 1
_RATIO_BITS: Final = 64


class TraceContext(NamedTuple):
    """Where in a trace something happens: the span above what comes next. Ids are lower-case hexadecimal."""

    trace_id: str
    span_id: str
    is_sampled: bool

    def at(self, span_id: str) -> "TraceContext":
        """The same trace at another span."""
        return TraceContext(self.trace_id, span_id, self.is_sampled)

    def header(self) -> str:
        """The value of `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.is_sampled else '00'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that has ended; instants are nanoseconds UTC.

    `error` None means that it did not fail; its text may be empty. `parent_id` None: the trace begins here.
    """

    context: TraceContext
    parent_id: str | None
    name: str
    kind: Kind
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Value]
    error: str | None = None


def parse(header: str | None) -> TraceContext | None:
    """The context that a `traceparent` names; None for one that W3C tells to ignore."""
    found = None if header is None else _HEADER.fullmatch(header)
    if found is None:
        return None
    return TraceContext(found[1], found[2], bool(int(found[3], 16) & _SAMPLED))


def is_sampled(trace_id: str, ratio: float) -> bool:
    """Whether a trace that begins here is among `ratio` of them; all who ask of one trace agree, as in the SDKs."""
    return int(trace_id[-16:], 16) < round(ratio * (1 << _RATIO_BITS))


def span_id_of(*names: object) -> str:
    """The id of the span of what these names name, whoever asks and however often."""
    return _digest(8, names)


def trace_id_of(*names: object) -> str:
    """The id of a trace that begins with what these names name."""
    return _digest(16, names)


def _digest(size: int, names: tuple[object, ...]) -> str:
    digest = hashlib.blake2b("\x1f".join(map(str, names)).encode(), digest_size=size).hexdigest()
    return digest if digest.strip("0") else digest[:-1] + "1"
