"""The workflow engine's pure core: definitions, commands, events, and the decisions between them."""
