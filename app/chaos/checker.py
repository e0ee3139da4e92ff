"""Judges a run of the fault suite by its folder and the healed cluster: one entry a law, never a silent pass.

    python -m app.chaos.checker FOLDER [--json]

The folder is written by the driver, the nemesis, the ledger and the witness; every file is JSON, `.jsonl` one object
a line, times `…_ns` are `time.time_ns()` of the rig, whose clock is never faked. A line that is cut at the end of a
file (its writer was killed) is passed over, anywhere else it is a fault of the run.

run.json       what was planned and where the product is:
    {"seed": 1, "bootstrap": "127.0.0.1:9092", "client_id": "headrace", "started_ns", "healed_ns", "ended_ns",
     "planned_starts": 3000, "planned_faults": [{"number": 0, "kind": "kill worker"}, …],
     "effects": {"<workflow>": ["<step>", …]}, "end_within_s": 30, "ok_share": 0.95, "settle_s": 2,
     "telemetry": true, "settings": {"rollup.grace_ms": 1000, …}}
    The product has no fault any more from `healed_ns` on; nothing is started after `ended_ns`. `effects`: steps whose
    effect is one POST to the ledger. `settle_s` is added to the end of each fault before its window is over.
    `telemetry` says that a transform ran; `settings` are those it ran with where they differ from the defaults.
ops.jsonl      the driver, open loop (`app.chaos.oplog`); two lines a request, the first before anything is sent:
    {"op": 17, "what": "start", "phase": "intent", "at_ns": …, "key": "s-17"}
    {"op": 17, "what": "start", "phase": "ok" | "fail" | "info", "at_ns": …, "execution": "…", "detail": "503"}
    `key` is the request's Idempotency-Key and goes into the input: `input.op == key`. ok = acknowledged (2xx, with
    `execution`); fail = surely not taken (4xx); info = nobody knows (no answer, 5xx), as is an intent without an
    outcome. Two requests under one `key` are two ops.
ledger.jsonl   `app.chaos.ledger`: {"kind": "accepted" | "repeat" | "zombie", "execution", "step", "attempt", "token",
     "hash", "key", "wall_ns", "mono_ns"}; `key` is the Idempotency-Key, `token` grows with each attempt of a step.
faults.jsonl   the nemesis, a line each fault that was put in, by the `number` of its plan:
    {"number": 0, "fault": "kill worker", "at_ns": …, "until_ns": …, "proof": {"pid": 17, "waited": -9}}
    `proof` is what was seen of its having happened, null or empty when nothing was; `until_ns` when it was taken back.
witness.jsonl  `app.chaos.checker_witness`, a reader of topics during the run:
    {"topic", "partition", "offset", "hash", "at_ns", "ended": ["<execution>", …]}
acks.jsonl     the driver of telemetry, a line each acknowledged (ok), refused (fail) or unknown (info) range of seqs
    of one device and session: {"device", "session", "first", "last", "outcome", "at_ns"}
books.jsonl    the last word of each producer: {"producer", "generated", "acknowledged", "spooled", "dead_lettered",
     "dropped": {"<reason>": n}, "in_flight"}
Files other than run.json may be missing where the run has no such part; a law without its file says "not asked".
"""
