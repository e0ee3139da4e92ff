"""Laws of who is alive, frozen or gone: a healthy member is never removed."""

from hypothesis import given
from hypothesis import strategies as st

from app.domain.detector import (
    NEVER,
    Own,
    Patience,
    Peer,
    awake,
    child_verdict,
    hear,
    hung_up,
    limit_s,
    peer_verdict,
    refuse,
    silence_s,
)

PATIENCE = Patience()
seconds = st.floats(min_value=0, max_value=1000)


def verdict(peer: Peer, now_s: float, own: Own | None = None, others_heard_s: float = NEVER, *, isolated: bool = False):
    own = own or Own(now_s, 0.0)
    return peer_verdict(PATIENCE, own, peer, now_s, others_heard_s=others_heard_s, isolated=isolated)


@given(seconds)
def test_a_process_that_is_not_stopped_is_alive_however_long_it_is_silent(silent_s):
    assert child_verdict(PATIENCE, silent_s, stopped=False) == "alive"


@given(st.floats(min_value=0, max_value=0.4))
def test_a_stop_of_three_tenths_removes_nobody(silent_s):
    # The last beat was up to a tenth before the stop.
    assert child_verdict(PATIENCE, silent_s, stopped=True) == "alive"


def test_a_stopped_process_is_frozen_and_then_overdue():
    assert child_verdict(PATIENCE, 0.46, stopped=True) == "frozen"
    assert child_verdict(PATIENCE, 4.9, stopped=True) == "frozen"
    assert child_verdict(PATIENCE, 5.0, stopped=True) == "overdue"


@given(stood_s=st.floats(min_value=0.3, max_value=1000), since_s=st.floats(min_value=0, max_value=0.3))
def test_whoever_stood_still_itself_blames_nobody_for_the_silence(stood_s, since_s):
    own = awake(Own(10.0, 0.0), 10.0 + stood_s, PATIENCE)
    now_s = 10.0 + stood_s + since_s
    assert silence_s(own, 9.9, now_s) <= since_s + 1e-9
    assert verdict(Peer(9.9), now_s, own) == "alive"


def test_small_gaps_of_ones_own_are_no_stand_still():
    own = Own(0.0, 0.0)
    for step in range(1, 200):
        own = awake(own, step * 0.1, PATIENCE)
    assert own.awake_s == 0.0


def test_a_node_that_hung_up_and_is_refused_is_gone_at_once():
    peer = hung_up(Peer(1.0), 1.001)
    assert verdict(refuse(peer, 1.002), 1.002) == "gone"


def test_a_refusal_alone_waits_for_a_beat_by_another_way():
    refused = refuse(Peer(1.0), 1.05)
    assert verdict(refused, 1.1) == "alive"
    assert verdict(refused, 1.3) == "gone"
    assert verdict(hear(refused, Own(1.1, 0.0), 1.1), 1.15) == "alive"
    assert verdict(refused, 1.3, others_heard_s=1.2) == "unreachable"


def test_a_node_that_hung_up_here_and_was_heard_by_another_since_is_not_gone():
    peer = refuse(hung_up(Peer(1.0), 1.001), 1.002)
    assert verdict(peer, 1.2, others_heard_s=1.1) == "unreachable"
    assert verdict(peer, 1.2, others_heard_s=0.95) == "gone", "its last beat to another was before"


@st.composite
def peers(draw: st.DrawFn, *, met: bool) -> Peer:
    """Silent, refused, hung up, or all of that."""
    peer = Peer(1.0, met=met)
    if draw(st.booleans()):
        peer = hung_up(peer, draw(st.floats(1.001, 3.0)))
    return refuse(peer, draw(st.floats(1.001, 3.0))) if draw(st.booleans()) else peer


@given(peers(met=False), seconds, st.booleans())
def test_a_node_that_was_never_heard_is_never_gone(peer, silent_s, isolated):
    """Its address may lead nowhere from here, as 127.0.0.1 does from another host."""
    assert verdict(peer, 1.0 + silent_s, isolated=isolated) != "gone"


@given(peers(met=True), seconds)
def test_who_is_refused_by_all_of_several_is_cut_off_itself_and_removes_nobody(peer, silent_s):
    assert verdict(peer, 1.0 + silent_s, isolated=True) != "gone"


def test_a_silent_node_is_gone_only_after_the_others_had_time_to_say_that_they_hear_it():
    assert verdict(Peer(1.0), 1.45) == "alive"
    assert verdict(Peer(1.0), 1.55) == "unreachable"
    assert verdict(Peer(1.0), 1.75) == "gone"


@given(silent_s=seconds, ago_s=st.floats(min_value=0, max_value=0.49))
def test_a_node_that_another_has_just_heard_is_never_gone_for_its_silence(silent_s, ago_s):
    now_s = 1000.0 + silent_s
    assert verdict(Peer(1000.0), now_s, others_heard_s=now_s - ago_s) in {"alive", "unreachable"}


@given(silent_s=seconds)
def test_who_hears_none_of_several_is_cut_off_itself_and_removes_nobody(silent_s):
    assert verdict(Peer(1.0), 1.0 + silent_s, isolated=True) != "gone"


@given(st.lists(st.floats(min_value=0.05, max_value=0.9), max_size=50))
def test_a_slow_node_is_given_more_time_but_not_for_ever(gaps_s):
    peer, now_s = Peer(0.0), 0.0
    for gap_s in gaps_s:
        now_s += gap_s
        peer = hear(peer, Own(now_s, 0.0), now_s)
        assert limit_s(PATIENCE, peer) >= min(2.0, 2 * gap_s) - 1e-9
    assert 0.5 <= limit_s(PATIENCE, peer) <= 2.0
    assert verdict(peer, now_s + 2.3) == "gone"
