"""What each role of a process is made of: adapters and agents put together, one role a file."""
