"""Loops over a Kafka stream, each round one decision of `app.domain`."""
