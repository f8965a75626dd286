"""The errors that a user can see, each with its exit code.

Invariant: the message is one line. It names the file, key or flag, what is wrong, and what to type instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class GhostError(Exception):
    """A run failed for a known reason. Exit code 1, or the one that is given."""

    exit_code = 1

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code or self.exit_code


class UsageError(GhostError):
    """Wrong usage, recipe or data. Nothing was started and no file was written. Exit code 2."""

    exit_code = 2


class NonFiniteError(GhostError):
    """A loss or a weight became NaN or infinite. Exit code 3."""

    exit_code = 3


class OutOfMemoryError(GhostError):
    """The device has too little memory for the recipe's batch. Exit code 4."""

    exit_code = 4


class Interrupted(BaseException):
    """Stopped by a signal. The same command continues from the last checkpoint. Exit code 75.

    No Exception: a signal can come anywhere, and code that goes on after an error must not go on after this.
    """

    exit_code = 75


def origin(error: BaseException) -> str:
    """What an error goes back to, in the system's words: each layer of a connection repeats the ones below it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return getattr(error, "strerror", None) or str(error)


def similar(word: str, known: Iterable[str]) -> list[str]:
    """At most two of the known words, the most similar to `word` first, in any case of the letters."""
    from difflib import get_close_matches

    written = {name.lower(): name for name in known}
    return [written[hit] for hit in get_close_matches(word[:60].lower(), written, n=2)]


def meant(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(names)}?"


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` with the known words similar to `word`. Without any: `; known: ...` with twenty of them."""
    hits = similar(word, known)
    return meant(hits) if hits else f"; known: {', '.join(known[:20])}{', ...' * (len(known) > 20)}"


def one_of(what: str, value: str, known: Sequence[str]) -> str:
    """`value`. UsageError, which lists the known values, if it is none of them."""
    if value not in known:
        raise UsageError(f"{what} '{printable(value)}' does not exist; there are {', '.join(known)}")
    return value


def printable(text: object) -> str:
    """`text` with every control character escaped, so that a file name cannot send commands to the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
