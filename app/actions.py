"""The closed list of action names that log records may carry, each with its meaning."""

# The field `action` names what happened, in words a search or an alert can rely on. A test reads
# every source file and fails on an action that is not listed here, and on one that nobody logs.
ACTIONS: dict[str, str] = {
    # The life of a process
    "process_started": "The process is up and serves; `roles` and `urls`.",
    "process_stopped": "The process ended in order; `exit_code`.",
    "process_failed": "A part of the process failed, and the process ends.",
    "roles_failed": "The roles of the process crashed or cannot go on.",
    "stop_requested": "A signal asked the process to stop.",
    "stop_deadline_exceeded": "The roles did not stop in time and are cancelled.",
    # Settings
    "config reloaded": "A changed file was applied; `changed` holds the diff, `restart_required` what waits.",
    "config rejected": "A changed file is not valid; the old values stay in force and `problems` says why.",
    "config failed": "A part of the service could not take a valid change; the old values stay in force.",
    "config watch failed": "The file system tells of no changes; the file is looked at in intervals instead.",
    # The supervisor and its children
    "child_started": "A child process was started; `role`, `child_pid`.",
    "child_died": "A child ended by itself and starts again after a pause.",
    "child_killed": "A child did not answer and was killed.",
    "child_hopeless": "A child dies at every start; the supervisor ends.",
    "demonstration_failed": "`headrace up` could not register or start its demonstration workflows.",
    "start_interrupted": "The stop came before everything was up.",
    "announce_failed": "The supervisor hears this child no more.",
    "announce_invalid": "A child told its supervisor something unreadable.",
    "metrics_conflict": "Two processes disagree on the type of a metric.",
    # Kafka
    "broker_awaited": "No broker answers yet; the start waits.",
    "broker_found": "The broker that was waited for answers.",
    "broker_unavailable": "The broker does not answer; the work is tried again.",
    "topics_created": "Topics that were missing were created.",
    "stage_failed": "A stage with tables failed while it stopped; what it held is read again.",
    "agent_failed": "An agent failed; the process ends and the records are read again.",
    "header_unreadable": "A record's header has a name that is not UTF-8; the name is kept with marks in it.",
    "kafka_ready": "The embedded Kafka answers.",
    "kafka_killed": "The embedded Kafka did not stop in time.",
    "java_too_old": "The Java that was found is too old for Kafka; another is taken.",
    "class_archive_made": "The archive that makes Java start faster was made.",
    "class_archive_discarded": "The archive is no longer of use and is made again.",
    # Sinks and topics as others declared them
    "sink_unavailable": "A sink did not take a batch; it is given it again in `wait_ms`; `attempt` counts failures.",
    "sink_recovered": "A sink takes rows again after `attempts`.",
    "sink_repeat": "A file sink was given rows that are in its files already; they are left out.",
    "task_type_broken": "A plug-in of a task type cannot be used; the message says why.",
    "kafka_restarted": "The embedded Kafka had died and was started again.",
    "topic_mismatch": "A topic exists with other settings than declared; it is used as it is.",
    "definition_unreadable": "A record of the registry of workflows is passed over; `key`, and the message says why.",
    # The cluster
    "cluster_event": "A node or a process joined, left, died, stands still, is not reached or was removed; `event`.",
    "clock_wrong": "The clock of this node differs from the broker's or a peer's; said once a minute.",
    "clock_right": "The clock of this node agrees with the others' again.",
    "member_unreadable": "A record of cluster.members is passed over; `key`, and the message says why.",
    # Triggers and schedules of workflows
    "trigger_condition_failed": "The condition of a trigger has no answer for a record, which starts nothing.",
    "trigger_records_late": "Records are read later than ended executions are kept: one read again would start anew.",
    "trigger_topics": "The topics that workflows listen to are read from now on; `topics`.",
    # Tables
    "table_restored": "A partition of a table is open; how many changelog records it took, and how long.",
    "table_restoring": "A partition of a table is being read back from its changelog; how far it is.",
    "partition_fenced": "A partition is another owner's, or may be: it is given up and the group is asked anew.",
    "standby_cold": "Tables that were to be kept warm for another node cannot be opened.",
    "standby_waits": "A changelog cannot be followed for the moment.",
    "table_emptied": "What the disk held of a table was overruled by another owner; it is read back.",
    # The producer and the fleet
    "topic_gone": "A topic that was produced to no longer exists.",
    "producer_close": "A Kafka client of the producer failed while it closed.",
    "producer_failed": "A lane of the producer met a bug; everything that waits learns of it.",
    "producer_replaced": "The Kafka client of the producer failed and is replaced.",
    "producer_stop": "The producer stopped with records unsent; `records`.",
    "spool_begun": "The broker does not acknowledge: readings go to the disk; `records` were taken back.",
    "spool_replayed": "All that was on disk is with the broker, and readings go straight again; `records`.",
    "spool_recovered": "Readings of an earlier process are on disk and are sent first; `records`, `bytes`.",
    "spool_kept": "The process stops with readings on disk, for the next start; `records`.",
    "spool_dropped": "Readings on disk fell to a limit or to damage; `records`, `reason`.",
    "spool_refused": "The disk does not take readings; they wait in memory; `reason`.",
    "spool_taken": "The disk takes readings again; `records` were dropped meanwhile.",
    "spool_sync": "What was written to the spool is not forced to the disk.",
    "spool_position": "The position in the spool is not written; after a crash more is repeated.",
    "spool_unreadable": "A segment of the spool cannot be read.",
    "spool_failed": "The spool met a bug; the process ends, and what is on disk is sent by the next.",
    "spool_unused": "The spool's folder is another process's, and this one keeps what waits in memory only.",
    "fleet_started": "The devices begin to send; `devices`.",
    "fleet_stopped": "The devices stopped.",
    "device_command": "The fleet obeyed a command; `command`, `command_id`, `devices`.",
    "replay_ended": "A recorded file was replayed to its end.",
    # Traces
    "trace_export_failed": "The collector does not take spans; said once, until it takes them again.",
    "trace_export_recovered": "The collector takes spans again.",
    "trace_failed": "Spans could not be made of the events of an execution; the execution goes on.",
    # Workflows
    "engine_recovered": "The engine of a partition is open; how many executions live, how many have work in hand.",
    "execution_failed": "An execution failed or timed out; `workflow_id`, `execution_id`, `trace_id`.",
    "entity_broken": "A schedule or backfill met a bug or a row it cannot read; the others go on.",
    "execution_broken": "A decision of an execution met a bug; it fails with that, the others go on.",
    "command_refused": "A record of workflow.commands is not obeyed and became a dead letter; `reason`.",
    # The API
    "health_check_failed": "A health check failed to answer.",
    "http_request_failed": "A request met a bug and was answered 500.",
    "read_model_reads": "The read model, or the device registry, is connected.",
    "read_model_waits": "The read model, or the device registry, waits for Kafka.",
    "executions_feed_ended": "The process that feeds the index of executions ended; it is started again.",
    "executions_feed_refused": "Another process feeds the index of executions in the same folder.",
    "read_model_skipped": "The read model skipped telemetry that nobody would see; `records`.",
}

# Said once in the life of a process or on a change by people: never sampled away.
ALWAYS_KEPT = frozenset(
    {
        "process_started",
        "process_stopped",
        "stop_requested",
        "config reloaded",
        "config rejected",
        "config failed",
        "child_started",
        "kafka_ready",
        "topics_created",
        "fleet_started",
        "fleet_stopped",
        "device_command",
        "replay_ended",
    }
)
