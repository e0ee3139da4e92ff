"""Laws of task executors."""
