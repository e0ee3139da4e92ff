"""Settings of the tables: RocksDB on disk and its restore."""

from config.section import Section, setting


class TablesSettings(Section):
    """Where state is kept and how much memory it may use, for each partition of each stage."""

    directory: str = setting(
        ".headrace/tables", min_length=1, description="Folder of the RocksDB files, one sub-folder a partition."
    )
    block_cache_bytes: int = setting(
        16_777_216, ge=0, le=1 << 40, unit="bytes", description="Cache of blocks read, one partition."
    )
    write_buffer_bytes: int = setting(
        8_388_608, ge=65_536, le=1 << 34, unit="bytes", description="Writes kept in memory before they go to a file."
    )
    max_open_files: int = setting(
        128, ge=16, le=1_000_000, unit="files", description="Files one partition keeps open at most."
    )
    restore_batch_records: int = setting(
        5_000, ge=1, le=1_000_000, unit="records", description="Changelog records applied in one write on restore."
    )
    sync_writes: bool = setting(
        default=False,
        description="Wait for the disk on each write. Off is safe: what a lost machine did not write is restored"
        " from the changelog.",
    )
