"""The pure parts of watching and restarting."""
