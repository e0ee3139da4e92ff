"""The HTTP interface: parse, send a command, or read; never write a table."""
