"""The fault suite: a cluster under load, seeded faults, and a verdict on what it promised."""
