"""What was found lately, remembered only while somebody tells us of changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values by key for at most `seconds`; at most `most` of them, the oldest go first.

    It starts deaf and remembers nothing: `listen` opens it once changes are announced to this process, `forget_all`
    with `deaf=True` closes it when they no longer are.
    """

    def __init__(self, *, seconds: float, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._most, self._clock = seconds, most, clock
        self._values: dict[Key, tuple[float, Value]] = {}
        self.is_listening = False
        self.changes = 0
        """How many changes were heard of. Read it before asking the source and give it to `keep`."""

    def listen(self) -> None:
        """Changes are announced from now on."""
        self.forget_all()
        self.is_listening = True

    def forget_all(self, *, deaf: bool = False) -> None:
        """Forget everything; `deaf`: and keep nothing until `listen`."""
        self.is_listening = self.is_listening and not deaf
        self.forget(lambda _value: True)

    def find(self, key: Key) -> Value | None:
        """The value, if it is fresh."""
        kept_at, value = self._values.get(key, (float("-inf"), None))
        return value if self._clock() - kept_at < self._seconds else None

    def keep(self, key: Key, value: Value, *, changes: int) -> None:
        """Remember it, unless something changed since `changes` was read: the value may be from before that."""
        if not self.is_listening or changes != self.changes:
            return
        self._values.pop(key, None)
        if len(self._values) >= self._most:
            del self._values[next(iter(self._values))]
        self._values[key] = (self._clock(), value)

    def forget(self, matches: Callable[[Value], bool]) -> None:
        """Forget the values that match."""
        self.changes += 1
        for key in [key for key, (_, value) in self._values.items() if matches(value)]:
            del self._values[key]
