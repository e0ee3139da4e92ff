"""The peers' programs: never imported here, each run by an environment or a JVM of its own."""
