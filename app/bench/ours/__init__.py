"""Our side of each benchmark, a module a process, speaking as the peers do."""
