"""The service: adapters, composition and the command line round the pure core in `app.domain`."""

__version__ = "0.1.0"
