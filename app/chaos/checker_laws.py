"""The laws of a run that need no cluster: what the folder says, held against what was found of executions."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from app.chaos.checker_folder import EffectLine, FaultLine, Folder, Plan, Request

SHOWN: Final = 20
NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Law:
    """One law: `looked` things were looked at, `broken` counts those that break it, `says` are the first of them.

    One that was `asked` and has looked at nothing is broken too: it proves nothing.
    """

    name: str
    looked: int = 0
    broken: int = 0
    says: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    asked: bool = True

    @property
    def holds(self) -> bool:
        return not self.asked or (self.broken == 0 and self.looked > 0)


@dataclass(frozen=True, slots=True)
class Waited:
    """Something that a history waited for: due at `due_ms`, went on at `at_ms` (None: never), by the owner's clock."""

    what: str
    due_ms: int
    at_ms: int | None


@dataclass(frozen=True, slots=True)
class Known:
    """What the log says of one execution.

    `op` is what its input names, `began` the (task, attempt) of its attempts, `done` the tasks that have succeeded.
    """

    workflow: str
    op: str | None
    status: str | None
    ended_ms: int | None
    began: frozenset[tuple[str, int]] = frozenset()
    done: frozenset[str] = frozenset()
    waited: tuple[Waited, ...] = ()


Executions = Mapping[str, Known]


def not_asked(name: str) -> Law:
    """A law that this run has no part for."""
    return Law(name, asked=False)


def law(name: str, looked: int, says: Sequence[str], **facts: Any) -> Law:
    """A law of `says`, one text for each that breaks it."""
    return Law(name, looked, len(says), tuple(says[:SHOWN]), facts)


# ---- requests ----


def acknowledged(requests: Sequence[Request], known: Executions) -> Law:
    """Every acknowledged execution is in the event log and has ended."""
    says = []
    ok = [request for request in requests if request.outcome == "ok"]
    for request in ok:
        found = known.get(request.execution or "")
        if found is None:
            says.append(f"{request.key}: {request.execution} was acknowledged and is not on the log")
        elif found.status is None:
            says.append(f"{request.key}: {request.execution} was acknowledged and has not ended")
        elif found.op != request.key:
            says.append(f"{request.key}: {request.execution} was acknowledged and is {found.op}")
    return law("acknowledged", len(ok), says)


def unseen(requests: Sequence[Request], known: Executions) -> Law:
    """One request is one execution, whatever its answers; what was refused is none, what began has ended."""
    answers: dict[str, set[str]] = defaultdict(set)
    named: dict[str, set[str]] = defaultdict(set)
    for request in requests:
        answers[request.key].add(request.outcome)
        if request.execution is not None:
            named[request.key].add(request.execution)
    of_op: dict[str, list[str]] = defaultdict(list)
    for execution, found in known.items():
        if found.op is not None:
            of_op[found.op].append(execution)
    says = [f"{op}: started {len(ids)} times: {', '.join(ids[:3])}" for op, ids in of_op.items() if len(ids) > 1]
    says += [f"{op}: was answered with {', '.join(sorted(ids))}" for op, ids in named.items() if len(ids) > 1]
    says += [
        f"{op}: was refused and is {of_op[op][0]}" for op, told in answers.items() if told == {"fail"} and op in of_op
    ]
    says += [f"{op}: nobody has sent it, it is {ids[0]}" for op, ids in of_op.items() if op not in answers]
    says += [f"{execution} has not ended" for execution, found in known.items() if found.status is None]
    indefinite = [op for op, told in answers.items() if "ok" not in told and "info" in told]
    return law(
        "unseen", len(answers), says, indefinite=len(indefinite), indefinite_done=sum(op in of_op for op in indefinite)
    )


def conservation(known: Executions, refused: int, requests: Sequence[Request]) -> Law:
    """What was acknowledged is ended or a dead letter; nothing is under way."""
    ended = sum(found.status is not None for found in known.values())
    ok = len({request.execution for request in requests if request.outcome == "ok"})
    says = []
    if ended != len(known):
        says.append(f"{len(known) - ended:,} executions are under way")
    if ok > ended + refused:
        says.append(f"{ok:,} were acknowledged, {ended:,} have ended, {refused:,} are dead letters")
    statuses = Counter(found.status or "under way" for found in known.values())
    return law("conservation", len(known), says, dead_letters=refused, **statuses)


# ---- effects ----


def effects(lines: Sequence[EffectLine], plan: Plan, known: Executions) -> Law:
    """Each step that has succeeded has had its effect once, each that began at most once; no zombie's was taken."""
    accepted: dict[tuple[str, str], list[EffectLine]] = defaultdict(list)
    says = list(_taken(lines, accepted))
    for (execution, step), rows in accepted.items():
        found = known.get(execution)
        if len(rows) > 1:
            says.append(f"{execution}/{step} has had its effect {len(rows)} times, as {_keys(rows)}")
        if found is None or step not in plan.effects.get(found.workflow, ()):
            says.append(f"{execution}/{step} has had an effect, and the log knows no such step")
            continue
        says += [
            f"{execution}/{step} has had the effect of attempt {row.attempt}, which nobody has ordered"
            for row in rows
            if (step, row.attempt) not in found.began
        ]
    due = 0
    for execution, found in known.items():
        for step in plan.effects.get(found.workflow, ()):
            if step in found.done:
                due += 1
                if (execution, step) not in accepted:
                    says.append(f"{execution}/{step} has succeeded without its effect")
    kinds: Counter[str] = Counter(line.kind for line in lines)
    return law("effects", due, says, due=due, **kinds)


def _taken(lines: Iterable[EffectLine], accepted: dict[tuple[str, str], list[EffectLine]]) -> Iterable[str]:
    """The ledger's own word, line by line: no token goes back, no key has two contents."""
    tokens: dict[tuple[str, str], int] = {}
    hashes: dict[str, str] = {}
    for line in lines:
        place = (line.execution, line.step)
        if line.kind == "zombie":
            continue
        if line.token < tokens.get(place, -1):
            yield f"{line.execution}/{line.step} was taken of token {line.token} after {tokens[place]}"
        tokens[place] = max(tokens.get(place, -1), line.token)
        if hashes.setdefault(line.key, line.hash) != line.hash:
            yield f"{line.key} was sent with two contents"
        if line.kind == "accepted":
            accepted[place].append(line)


def _keys(rows: Sequence[EffectLine]) -> str:
    return ", ".join(sorted({row.key for row in rows})[:3])


# ---- timers ----


def timers(known: Executions, now_ms: int, late_s: float) -> Law:
    """What waits goes on at its time or later, and does go on."""
    looked = 0
    says: list[str] = []
    late_ms: list[int] = []
    for execution, found in known.items():
        for waited in found.waited:
            looked += 1
            if waited.at_ms is None:
                if found.status is None and waited.due_ms + late_s * 1000 < now_ms:
                    says.append(f"{execution}: {waited.what} was due at {waited.due_ms} and has not gone on")
            elif waited.at_ms < waited.due_ms:
                says.append(f"{execution}: {waited.what} went on {waited.due_ms - waited.at_ms} ms early")
            else:
                late_ms.append(waited.at_ms - waited.due_ms)
    late_ms.sort()
    facts = {
        f"late_ms_p{part}": late_ms[min(len(late_ms) - 1, len(late_ms) * part // 100)] for part in (50, 99) if late_ms
    }
    return law("timers", looked, says, **facts) if looked else not_asked("timers")


# ---- when ----


def liveness(folder: Folder, known: Executions) -> Law:
    """After the end of all faults everything ends in time; how available it was is told by the second."""
    plan = folder.plan
    says = []
    seen = {each for line in folder.witness or () for each in line.ended}
    unseen = sum(one.status is not None and execution not in seen for execution, one in known.items())
    if folder.witness is not None and unseen:
        says.append(f"{unseen:,} ends were not seen by the witness, whose times these are")
    last_s = _last_end_s(folder, known)
    if last_s is not None and last_s > plan.end_within_s:
        says.append(f"the last execution ended {last_s:.1f} s after the cluster was healed")
    requests = folder.requests or ()
    buckets: dict[int, Counter[str]] = defaultdict(Counter)
    for request in requests:
        buckets[(request.at_ns - plan.started_ns) // NS][request.outcome] += 1
    bad = sum(1 for told in buckets.values() if told["ok"] < sum(told.values()))
    facts = {
        "s_from_heal_to_last_end": None if last_s is None else round(last_s, 3),
        "longest_gap_s": _longest_gap_s(folder),
        "gaps": _gaps_by_fault(folder),
        "seconds": len(buckets),
        "seconds_with_failures": bad,
        "availability": _share(sum(request.outcome == "ok" for request in requests), len(requests)),
    }
    return law("liveness", len(known), says, **facts)


def _last_end_s(folder: Folder, known: Executions) -> float | None:
    """By the witness's clock where there is one, else by that of the owners."""
    plan = folder.plan
    seen = [line.at_ns for line in folder.witness or () if line.ended]
    if seen:
        return max(0.0, (max(seen) - plan.healed_ns) / NS)
    ended = [found.ended_ms for found in known.values() if found.ended_ms is not None]
    return max(0.0, (max(ended) * 1_000_000 - plan.healed_ns) / NS) if ended else None


def _longest_gap_s(folder: Folder) -> float | None:
    """Between two ends as the witness saw them, while starts went on."""
    plan = folder.plan
    seen = sorted(line.at_ns for line in folder.witness or () if line.ended and line.at_ns <= plan.ended_ns)
    gaps = [later - earlier for earlier, later in pairwise([*seen, plan.ended_ns])]
    return round(max(gaps) / NS, 3) if gaps else None


def _gaps_by_fault(folder: Folder) -> dict[str, dict[str, float]]:
    """Of each kind of fault: how long the partition that stood still longest went without an end, in seconds.

    A fault's time is from its begin until it is taken back and settled; where such times overlap, a gap is told of
    every fault that it meets.
    """
    plan = folder.plan
    ends: dict[int, list[int]] = defaultdict(list)
    for line in folder.witness or ():
        if line.ended and line.at_ns <= plan.ended_ns:
            ends[line.partition].append(line.at_ns)
    gaps = [gap for seen in ends.values() for gap in pairwise([*sorted(seen), plan.ended_ns])]
    longest: dict[str, list[float]] = defaultdict(list)
    for fault in folder.faults or ():
        since, until = _window(fault, plan)
        met = [later - earlier for earlier, later in gaps if later >= since and earlier <= until]
        if met:
            longest[fault.fault].append(round(max(met) / NS, 3))
    return {
        kind: {"faults": len(found), "p50_s": sorted(found)[len(found) // 2], "max_s": max(found)}
        for kind, found in sorted(longest.items())
    }


def not_vacuous(folder: Folder) -> Law:
    """What was planned was sent, it went well where no fault was, and every fault has really happened."""
    plan, requests, faults = folder.plan, folder.requests or (), folder.faults or ()
    says = []
    sent_keys = len({each.key for each in requests})
    if sent_keys < plan.ok_share * plan.planned_starts:
        says.append(f"{sent_keys:,} of {plan.planned_starts:,} starts were sent")
    windows = [_window(fault, plan) for fault in faults]
    calm = [each for each in requests if not any(_meets(each, window) for window in windows)]
    ok = sum(each.outcome == "ok" for each in calm)
    if ok < plan.ok_share * len(calm):
        says.append(f"{ok:,} of {len(calm):,} starts outside of faults were acknowledged")
    if requests and not calm:
        says.append("there was no time without a fault")
    total = len({each.key for each in requests if each.outcome == "ok"})
    if requests and total < max(1, plan.acknowledged_share * plan.planned_starts):
        says.append(f"{total:,} of {plan.planned_starts:,} planned starts were acknowledged")
    proved = {fault.number for fault in faults if fault.proof}
    says += [
        f"nothing proves that fault {planned.number} ({planned.kind}) has happened"
        for planned in plan.planned_faults
        if planned.number not in proved
    ]
    sent = folder.acks or ()
    if sent and not any(ack.outcome == "ok" for ack in sent):
        says.append("no reading was acknowledged")
    by_kind = Counter(fault.fault for fault in faults if fault.proof)
    return law(
        "not vacuous", len(requests) + len(faults) + len(sent), says, sent=len(requests), acknowledged=total,
        calm=len(calm), calm_ok=_share(ok, len(calm)), faults=dict(by_kind),
    )  # fmt: skip


def _meets(request: Request, window: tuple[int, int]) -> bool:
    """Whether it was under way in the window; one without an outcome was until who knows when."""
    since, until = window
    return request.at_ns <= until and (request.until_ns is None or request.until_ns >= since)


def _window(fault: FaultLine, plan: Plan) -> tuple[int, int]:
    until = fault.at_ns if fault.until_ns is None else fault.until_ns
    return fault.at_ns, until + round(plan.settle_s * NS)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
