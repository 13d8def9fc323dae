"""Values without canonical bytes: where they are, and what to do. Runs in the client."""

from __future__ import annotations


class Undigestible(Exception):
    """A value without canonical bytes.

    Attributes:
        path: from the argument to the value, the innermost part first.
        value: at fault.
        why: more than its type says; "" if nothing.
    """

    def __init__(self, value: object, why: str = "") -> None:
        super().__init__(why)
        self.value = value
        self.why = why
        self.path: list[str] = []

    def within(self, step: str) -> Undigestible:
        """Add one step on the way to the value."""
        self.path.append(step)
        return self


def explain(name: str, error: Undigestible) -> str:
    """What cannot be digested, and what to do: for an error's text."""
    kind = type(error.value)
    where = name + "".join(reversed(error.path))
    known_as = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    why = f" ({error.why})" if error.why else ""
    return (
        f"{where} of type {known_as} cannot be part of a cache key{why}: register a function that makes bytes of it with "
        f"@exex.id_for_memo.register({kind.__qualname__}), or name the argument in ignore_for_cache"
    )
