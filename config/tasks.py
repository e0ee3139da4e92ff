"""Settings of task executors: what carries out the tasks of workflows."""

from config.section import Section, setting


class TasksSettings(Section):
    """How many tasks run at once, where they run, and what ends one that does not end by itself."""

    queues: tuple[str, ...] = setting(
        ("default",),
        min_length=1,
        description="Task queues that the role worker takes orders from: topics workflow.tasks.<queue>.",
    )
    concurrency: int = setting(
        1_024, ge=1, le=100_000, unit="tasks", description="Attempts under way at once in one process, of all kinds."
    )
    threads: int = setting(
        16, ge=1, le=1_024, unit="threads", description="Threads for tasks that block; one task a thread."
    )
    processes: int = setting(
        2, ge=1, le=256, unit="processes", description="Processes for tasks that compute, or may crash or hang."
    )
    waiting: int = setting(
        256,
        ge=0,
        le=100_000,
        unit="tasks",
        description="Attempts that may wait for a thread, as many for a process and as many for an HTTP connection;"
        " more do not begin.",
    )
    queue_in_flight: int = setting(
        256, ge=1, le=100_000, unit="tasks", description="Orders of one queue partition that are under way at once."
    )
    timeout_s: float = setting(
        3_600.0, gt=0, le=604_800, unit="s", description="Limit of one attempt of a task that names none itself."
    )
    cancel_grace_ms: int = setting(
        2_000,
        ge=0,
        le=600_000,
        unit="ms",
        description="Time that a task asked to stop has; then its process is killed, its thread or coroutine left.",
    )
    abandoned: int = setting(
        64,
        ge=0,
        le=10_000,
        unit="tasks",
        description="Threads or coroutines left behind because they did not stop; with more, such tasks are refused.",
    )
    heartbeat_interval_ms: int = setting(
        1_000, ge=10, le=600_000, unit="ms", description="Heartbeats of one attempt are passed on no more often."
    )
    held_up_ms: int = setting(
        2_000,
        ge=0,
        le=600_000,
        unit="ms",
        description="A coroutine that holds up the event loop for so long at a stretch fails as HeldUpLoop. 0: never.",
    )
    process_memory_bytes: int = setting(
        2 << 30,
        ge=0,
        le=1 << 44,
        unit="bytes",
        description="Memory that one task process may ask for; beyond it the task gets a MemoryError. 0: no limit.",
    )
    process_tasks: int = setting(
        1_000, ge=1, le=10_000_000, unit="tasks", description="A task process is replaced after so many tasks."
    )
    process_start_timeout_ms: int = setting(
        30_000, ge=100, le=600_000, unit="ms", description="A task process that is not ready by then is killed."
    )
    process_environment: tuple[str, ...] = setting(
        (),
        description="Environment variables that task processes see besides PATH, HOME, LANG, TZ, TMPDIR and Python's"
        " own. The others may hold secrets.",
    )
    claim_check: bool = setting(
        default=False,
        description="Keep results larger than workflow.result_bytes in files; off refuses them."
        " The folder must be the same for every process that runs tasks.",
    )
    payload_directory: str = setting(
        ".headrace/payloads", min_length=1, description="Folder of the files of large results."
    )
    payload_bytes: int = setting(
        64 << 20, ge=1_024, le=1 << 32, unit="bytes", description="Largest result kept in a file."
    )
    payload_retention_s: int = setting(
        604_800, ge=60, le=315_360_000, unit="s", description="Files of large results are deleted when this old."
    )
    order_late_ms: int = setting(
        60_000,
        ge=0,
        le=86_400_000,
        unit="ms",
        description="An order from a queue this long past its deadline is reported as timed out and not begun.",
    )
    secrets_directory: str | None = setting(
        None,
        min_length=1,
        description="Folder of secret files: ${secret:NAME} is the content of the file NAME, when the environment has"
        " no HEADRACE_SECRET_NAME.",
    )
    files_directory: str = setting(
        ".headrace/files", min_length=1, description="Folder that source.file and sink.file are confined to."
    )
    sqlite_paths: tuple[str, ...] = setting(
        (".headrace/files", ".headrace/headrace.db"),
        description="SQLite files that source.sql and sink.sql may open, and folders with all that is in them.",
    )
    python_modules: tuple[str, ...] = setting(
        ("app.examples",),
        description="Modules that transform.python may call, with everything below them; plug-ins need no entry.",
    )
    allow_private_addresses: bool = setting(
        default=False,
        description="Let source.http and sink.http reach private addresses; off keeps inner services safe.",
    )
    http_connections: int = setting(
        32,
        ge=1,
        le=10_000,
        unit="requests",
        description="HTTP requests of one process at once; others wait, which is no part of a request's own time-out.",
    )
    http_connect_timeout_ms: int = setting(
        5_000, ge=1, le=600_000, unit="ms", description="An HTTP connection that is not up by then counts as failed."
    )
    source_rows: int = setting(
        10_000,
        ge=1,
        le=10_000_000,
        unit="rows",
        description="Rows that a source may give at most.",
    )
    source_bytes: int = setting(
        16 << 20, ge=1_024, le=1 << 32, unit="bytes", description="Bytes that a source may read at most for one result."
    )
    sql_databases: int = setting(
        32, ge=1, le=1_000, unit="databases", description="Databases that one process stays connected to."
    )
    sql_connections: int = setting(
        8, ge=1, le=1_000, unit="connections", description="Connections of one process to one database."
    )
    sql_connect_timeout_ms: int = setting(
        5_000, ge=1, le=600_000, unit="ms", description="A database connection that is not up by then counts as failed."
    )
    sql_statement_timeout_ms: int = setting(
        30_000, ge=1, le=86_400_000, unit="ms", description="A statement that is not done by then is given up."
    )
    effects_retention_s: int = setting(
        2_592_000,
        ge=3_600,
        le=315_360_000,
        unit="s",
        description="Effects that sinks have noted are forgotten after this long; no attempt may come later.",
    )
