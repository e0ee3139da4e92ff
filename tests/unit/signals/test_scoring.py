"""Laws of scoring."""

from hypothesis import given
from hypothesis import strategies as st

from app.domain.scoring import RaisedSignal, TruthInterval, score


def signal(at: int, *, device: str = "d", metric: str | None = None, rule: str = "r", kind: str = "k") -> RaisedSignal:
    return RaisedSignal(f"{rule}/{device}/{metric}/{at}", rule, kind, device, metric, at)


TRUTH = (TruthInterval("d", 100, 200, None, "drift"), TruthInterval("d", 500, 600, "m", "spike"))


def test_a_signal_within_the_interval_and_its_tolerance_detects_it() -> None:
    for at, detected in ((99, 0), (100, 1), (200, 1), (210, 1), (211, 0)):
        total = score([signal(at)], TRUTH[:1], 10).total
        assert (total.detected, total.false_positives) == (detected, 1 - detected)


def test_repeated_signals_in_one_interval_count_once_and_the_first_gives_the_delay() -> None:
    total = score([signal(150), signal(120), signal(160), signal(300)], TRUTH, 0).total
    assert (total.intervals, total.detected, total.false_positives) == (2, 1, 1)
    assert (total.precision, total.recall, total.f1) == (0.5, 0.5, 0.5)
    assert total.delay_ms == (20.0, 20.0, 20.0)


def test_a_record_delivered_twice_counts_once() -> None:
    assert score([signal(300), signal(300)], TRUTH, 0).total.false_positives == 1


def test_a_metric_is_compared_only_where_both_name_one() -> None:
    assert score([signal(550, metric="m")], TRUTH[1:], 0).total.detected == 1
    assert score([signal(550)], TRUTH[1:], 0).total.detected == 1
    assert score([signal(550, metric="other")], TRUTH[1:], 0).total.detected == 0
    assert score([signal(150, metric="other")], TRUTH[:1], 0).total.detected == 1
    assert score([signal(150, device="e")], TRUTH[:1], 0).total.detected == 0


def test_rules_kinds_and_labels_have_figures_of_their_own() -> None:
    scored = score([signal(110, rule="a"), signal(520, rule="b", kind="z"), signal(900, rule="b", kind="z")], TRUTH, 0)
    assert scored.by_rule["a"].precision == 1.0
    assert scored.by_rule["a"].recall == 0.5
    assert scored.by_rule["b"].precision == 0.5
    assert scored.by_kind["z"] == scored.by_rule["b"]
    assert scored.by_label["spike"].recall == 1.0
    assert scored.by_label["spike"].precision is None
    assert scored.by_label["drift"].intervals == 1


def test_nothing_to_divide_by_is_none() -> None:
    empty = score([], [], 0).total
    assert (empty.precision, empty.recall, empty.f1, empty.delay_ms) == (None, None, None, None)
    assert score([], TRUTH, 0).total.recall == 0.0
    assert score([signal(1)], [], 0).total.precision == 0.0


signals = st.lists(
    st.builds(signal, st.integers(0, 1000), device=st.sampled_from("de"), metric=st.sampled_from([None, "m", "n"])),
    max_size=30,
)
intervals = st.lists(
    st.builds(
        lambda device, begin, length, metric: TruthInterval(device, begin, begin + length, metric, "x"),
        st.sampled_from("de"),
        st.integers(0, 1000),
        st.integers(0, 100),
        st.sampled_from([None, "m", "n"]),
    ),
    max_size=10,
)


@given(signals=signals, truth=intervals, tolerance=st.integers(0, 50), seed=st.randoms())
def test_scores_agree_with_the_definition_and_ignore_order(
    signals: list[RaisedSignal], truth: list[TruthInterval], tolerance: int, seed: object
) -> None:
    def matches(one: RaisedSignal, other: TruthInterval) -> bool:
        return (
            one.device_id == other.device_id
            and other.from_ms <= one.at <= other.to_ms + tolerance
            and (one.metric is None or other.metric is None or one.metric == other.metric)
        )

    shuffled = list(signals)
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    found = score(shuffled, truth, tolerance)
    assert found == score(signals, truth, tolerance)
    total = found.total
    assert total.detected == sum(any(matches(one, other) for one in signals) for other in truth)
    assert total.false_positives == sum(not any(matches(one, other) for other in truth) for one in set(signals))
    if total.delay_ms is not None:
        assert 0 <= total.delay_ms.p50 <= total.delay_ms.p95
