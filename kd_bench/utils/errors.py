"""What a user can cause, said in one sentence."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: a sentence that names the file, key or value at fault. The command ends with exit code 2."""


class RunFailed(Exception):
    """Good input, but the work could not be finished. The command ends with exit code 1."""


def nearest(value: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``value``, or None where nothing is near."""
    found = difflib.get_close_matches(value, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def unknown(kind: str, value: str, choices: Iterable[str], context: str = "") -> UserError:
    """The error for a name that does not exist.

    Args:
        kind: What was named, e.g. "method".
        value: The name as it was written.
        choices: The names that exist.
        context: Where it was written, e.g. "recipes/demo.yaml: methods".
    """
    choices = sorted(choices)
    hint = nearest(value, choices)
    end = f"did you mean {hint!r}?" if hint else f"there are: {', '.join(choices[:20])}{', ...' * (len(choices) > 20)}"
    return UserError(f"{context}{': ' if context else ''}no {kind} is called {value!r}; {end}")


def first_line(error: BaseException) -> str:
    """What an error says, without what follows in further lines; its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class Terminated(BaseException):
    """Somebody wants the run to end, by SIGTERM: what is under way is kept, and the command ends with code 143."""
