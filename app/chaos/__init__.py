"""The fault suite: faults on a real cluster, an independent ledger of effects, laws that judge, seeded mutants."""
