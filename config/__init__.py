"""What can be turned: settings, topics and nothing that runs."""
