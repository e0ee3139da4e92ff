"""Laws of the trace context: what W3C writes is read, all else is none, and all take the same share of traces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from app.domain.trace import TraceContext, is_sampled, parse, span_id_of, trace_id_of

HEX = "0123456789abcdef"
TRACE_IDS = st.text(HEX, min_size=32, max_size=32).filter(lambda text: text.strip("0"))
SPAN_IDS = st.text(HEX, min_size=16, max_size=16).filter(lambda text: text.strip("0"))


@given(TRACE_IDS, SPAN_IDS, st.booleans())
def test_what_is_written_is_read(trace_id: str, span_id: str, sampled: bool) -> None:
    context = TraceContext(trace_id, span_id, sampled)
    assert parse(context.header()) == context


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "-",
        f"00-{'0' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'0' * 16}-01",
        f"ff-{'a' * 32}-{'b' * 16}-01",
        f"00-{'A' * 32}-{'b' * 16}-01",
        f"00-{'a' * 32}-{'b' * 16}-01-more",
        f"00-{'a' * 31}-{'b' * 16}-01",
        f" 00-{'a' * 32}-{'b' * 16}-01",
    ],
)
def test_what_w3c_does_not_allow_is_no_context(header: str | None) -> None:
    assert parse(header) is None


def test_other_flags_leave_the_sampled_one_as_it_is() -> None:
    found = [parse(f"00-{'a' * 32}-{'b' * 16}-{flags}") for flags in ("00", "01", "02", "03")]
    assert [context is not None and context.is_sampled for context in found] == [False, True, False, True]


@given(TRACE_IDS, st.floats(0, 1))
def test_a_share_takes_the_traces_that_the_sdks_take(trace_id: str, ratio: float) -> None:
    theirs = TraceIdRatioBased(ratio).should_sample(None, int(trace_id, 16), "x").decision.is_sampled()
    assert is_sampled(trace_id, ratio) == theirs


def test_ids_are_those_of_names() -> None:
    assert (len(span_id_of("x", 1)), len(trace_id_of("x", 1))) == (16, 32)
    assert span_id_of("x", 1) == span_id_of("x", 1)
    assert span_id_of("x", "11") != span_id_of("x1", "1")
