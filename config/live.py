"""Holds the settings in force, compares them with new ones and applies what may change while running."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from app.errors import ConfigError
from config import tree
from config.load import Loaded, effective, fingerprint
from config.redact import REDACTED
from config.settings import Settings

Listener = Callable[[Settings, Settings], None]


@dataclass(frozen=True, slots=True)
class Change:
    """One key with its old and new value, both as they may be shown."""

    key: str
    old: Any
    new: Any
    is_hot: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """What a reload did: `changed` is in force, `restart_required` waits for the next start."""

    changed: tuple[Change, ...]
    restart_required: tuple[Change, ...]
    hash: str

    def __bool__(self) -> bool:
        return bool(self.changed or self.restart_required)


@dataclass(frozen=True, slots=True)
class _Subscription:
    apply: Listener
    check: Callable[[Settings], None] | None


class LiveSettings:
    """The settings in force; replaced whole, in one step, by `apply`."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._settings = loaded.settings
        self._pending: tuple[Change, ...] = ()
        self._subscriptions: list[_Subscription] = []

    @property
    def current(self) -> Settings:
        return self._settings

    @property
    def loaded(self) -> Loaded:
        """The last valid reading of the sources: origins and files; not all of it is in force."""
        return self._loaded

    @property
    def pending(self) -> tuple[Change, ...]:
        """Changes read that wait for a restart."""
        return self._pending

    def subscribe(self, apply: Listener, *, check: Callable[[Settings], None] | None = None) -> Callable[[], None]:
        """Call `apply(old, new)` after each change of hot keys; returns how to stop that.

        `check(new)` runs before anything changes and raises `ConfigError` or `ValueError` for values
        that no model can judge, such as an expression that does not compile.
        """
        subscription = _Subscription(apply, check)
        self._subscriptions.append(subscription)
        return lambda: self._subscriptions.remove(subscription)

    def apply(self, loaded: Loaded) -> Applied:
        """Put the hot keys of newly loaded settings in force, all of them or none.

        1. Take the new values of the hot keys over the old settings, and validate that whole.
        2. Ask every subscriber to check it.
        3. Replace the settings; tell every subscriber; when one fails, tell those before it of the way back.

        Raises `ConfigError`, and whatever a subscriber raised in step 3; the old settings are then in force.
        """
        old = self._settings
        changes = diff(old, loaded.settings)
        new = _with_hot_keys(old, loaded.settings)
        self._check(new)
        if new != old:
            self._replace(old, new)
        self._loaded = loaded
        self._pending = tuple(change for change in changes if not change.is_hot)
        return Applied(tuple(change for change in changes if change.is_hot), self._pending, fingerprint(new))

    def _check(self, new: Settings) -> None:
        problems: list[str] = []
        for subscription in self._subscriptions:
            if subscription.check is None:
                continue
            try:
                subscription.check(new)
            except ConfigError as error:
                problems.extend(error.problems)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError(problems)

    def _replace(self, old: Settings, new: Settings) -> None:
        self._settings = new
        told: list[_Subscription] = []
        try:
            for subscription in self._subscriptions:
                told.append(subscription)
                subscription.apply(old, new)
        except Exception:
            self._settings = old
            for subscription in reversed(told):
                subscription.apply(new, old)
            raise


def diff(old: Settings, new: Settings) -> tuple[Change, ...]:
    """The keys that differ, in the order of the models; secrets are shown as `[REDACTED]`."""
    shown_old, shown_new = effective(old), effective(new)
    return tuple(
        Change(key, before, after, leaf.is_hot)
        for leaf in tree.leaves(Settings)
        if tree.value_at(old, leaf.path) != tree.value_at(new, leaf.path)
        for key, before, after in _parts(leaf.dotted, _at(shown_old, leaf.path), _at(shown_new, leaf.path))
    )


def hot_keys() -> tuple[str, ...]:
    """The keys that change without a restart."""
    return tuple(leaf.dotted for leaf in tree.leaves(Settings) if leaf.is_hot)


def _with_hot_keys(old: Settings, new: Settings) -> Settings:
    """The old settings with the hot keys of the new ones; their combination is validated again."""
    try:
        return Settings(**_mix(old, new))
    except ValidationError as error:
        raise ConfigError(
            [
                f"{tree.dotted(tuple(detail['loc'])) or 'settings'}: {detail['msg']}; this combination of changed keys"
                " needs a restart"
                for detail in error.errors(include_url=False, include_input=False)
            ]
        ) from error


def _mix(old: BaseModel, new: BaseModel) -> dict[str, Any]:
    mixed: dict[str, Any] = {}
    for name, field in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        if tree.is_model(field.annotation):
            mixed[name] = type(before).model_validate(_mix(before, after))
        else:
            mixed[name] = after if tree.mark(field, "reload") == "hot" else before
    return mixed


def _parts(key: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Of mappings, and of lists whose items have an id or a name, only the items that differ."""
    before, after = _items(old), _items(new)
    if before is None or after is None:
        return [(key, old, new)]
    parts = [
        (f"{key}[{name}]", before.get(name), after.get(name))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]
    # Nothing to see: the order changed, or only secrets did.
    return parts or [(key, REDACTED, REDACTED)]


def _items(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return value
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return None
    named = {str(item.get("id", item.get("name"))): item for item in value}
    return named if len(named) == len(value) and "None" not in named else None


def _at(shown: dict[str, Any], path: Iterable[str]) -> Any:
    value: Any = shown
    for part in path:
        value = value[part]
    return value
