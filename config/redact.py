"""Hides secrets in text and in nested values before anybody sees them."""

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[REDACTED]"

# Deeper than any record of ours; what lies below is shown as text, so that a cycle ends.
_DEPTH = 12

_WORDS = r"password|passwd|secret|token|api[_-]?key|authorization"
_SENSITIVE_KEY = re.compile(rf"(?:{_WORDS})$", re.IGNORECASE)

# key = value, "key": "value", key=Bearer value, also inside JSON that is itself quoted in JSON. The
# match starts at the word itself, not at the name it ends, so that a long word costs linear time.
_ASSIGNMENT = re.compile(
    rf"(?P<key>(?:{_WORDS})\\*[\"']?\s{{0,8}}(?:=>|[:=])\s{{0,8}})"
    r"(?P<value>b?\\*\"(?:[^\"\\]|\\.)*\"?|b?'(?:[^'\\]|\\.)*'?|(?:(?:bearer|basic|digest)\s+)?[^\s,;&)}\]\"']+)",
    re.IGNORECASE | re.DOTALL,
)
_CREDENTIALS = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/-]{8,}=*", re.IGNORECASE)
# scheme://user:password@host; the password may hold '@' and '/', but never crosses into the next URL.
_URL_PASSWORD = re.compile(r"(://[^\s/:@\"']{0,256}):(?:(?!://)[^\s\"'<>]){1,1024}@")


def is_sensitive(key: str) -> bool:
    """True when a value under this name is a secret: `sasl_password`, `X-Api-Key`, `apiKey`, …"""
    return _SENSITIVE_KEY.search(key) is not None


def redact_text(text: str) -> str:
    """Replace the values of secrets and the passwords of URLs in free text."""
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1:{REDACTED}@", text)
    text = _CREDENTIALS.sub(rf"\1 {REDACTED}", text)
    return _ASSIGNMENT.sub(lambda found: found["key"] + REDACTED, text)


def redact_value(value: Any, depth: int = 0) -> Any:
    """Redact nested mappings and sequences; numbers and times pass, other objects become redacted text."""
    if value is None or isinstance(value, int | float | dt.date):
        return value
    if depth < _DEPTH and isinstance(value, Mapping):
        return {str(key): redact_entry(key, inner, depth + 1) for key, inner in value.items()}
    if depth < _DEPTH and isinstance(value, list | tuple | set | frozenset):
        return [redact_value(inner, depth + 1) for inner in value]
    return redact_text(value if isinstance(value, str) else str(value))


def redact_entry(key: Any, value: Any, depth: int = 0) -> Any:
    """Redact one named value: wholly when its name says that it is a secret."""
    if isinstance(key, str) and is_sensitive(key) and value is not None and value != "":
        return REDACTED
    return redact_value(value, depth)
