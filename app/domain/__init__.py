"""Pure logic of the service: standard library only, no await, clock, randomness or logging."""
