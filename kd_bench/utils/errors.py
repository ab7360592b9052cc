"""Errors whose message is one sentence for the user."""

import difflib
import signal
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Bad input. The message names the file, key or value at fault; the command ends with exit code 2."""


class RunFailed(Exception):
    """Good input, but the work failed. The command ends with exit code 1."""


class Terminated(BaseException):
    """A signal that ends programs was received: finished work is saved, and the command ends with the exit code of it.

    Args:
        number: The signal.

    Attributes:
        signal: The argument.
        exit_code: What a shell reports for a program that the signal has ended: 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        self.signal = signal.Signals(number)
        self.exit_code = 128 + self.signal
        super().__init__(f"stopped by {self.signal.name}")


#: Arguments of ``kd-bench list`` by which all names of a kind are listed.
_LISTS = {
    "method": "methods",
    "network": "networks",
    "dataset": "datasets",
    "key of a recipe": "settings",
    "setting": "settings",
    "method, network, data set, recipe or setting": "--help",
}

#: Largest number of names in a message.
_MAX_NAMES = 20


def nearest(value: str, choices: Iterable[str]) -> str | None:
    """Returns the choice most similar to ``value``, or None if none is similar. Upper and lower case are the same."""
    spellings: dict[str, list[str]] = {}
    for choice in choices:
        spellings.setdefault(choice.casefold(), []).append(choice)
    matches = difflib.get_close_matches(value.casefold(), spellings, n=1, cutoff=0.6)
    if not matches:
        return None
    return max(spellings[matches[0]], key=lambda choice: difflib.SequenceMatcher(None, value, choice).ratio())


def suggestion(value: str, choices: Sequence[str], more: str = ", ...") -> str:
    """Returns "did you mean ...?" with the choice most similar to ``value``; if none is, which choices there are.

    Args:
        value: The name that is no choice.
        choices: The choices.
        more: Stands for the rest of a long list.
    """
    hint = nearest(value, choices)
    if hint:
        return f"did you mean {hint!r}?"
    if not choices:
        return "there is none"
    return f"there are: {', '.join(choices[:_MAX_NAMES])}{more if len(choices) > _MAX_NAMES else ''}"


def unknown(kind: str, value: str, choices: Iterable[str], context: str = "") -> UserError:
    """Returns the error for a name that does not exist.

    Args:
        kind: What the name should name, e.g. "method".
        value: The name.
        choices: The names that exist.
        context: Where the name was written, e.g. "recipes/demo.yaml: methods".
    """
    choices = sorted(choices)
    more = f", ... (see: kd-bench list {_LISTS[kind]})" if kind in _LISTS else ", ..."
    return UserError(f"{prefix(context)}no {kind} is called {value!r}; {suggestion(str(value), choices, more)}")


def one_line(message: str) -> str:
    """Returns a message on one line, with escapes for characters that would change the terminal's state."""
    text = " ".join(message.split())
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def prefix(context: str) -> str:
    """Returns ``context`` and a colon, with which an error's message begins; "" if there is no context."""
    return f"{context}: " if context else ""


def install_command(extra: str) -> str:
    """Returns how to install an extra of kd-bench, as the end of a sentence."""
    return f"pip install 'kd-bench[{extra}]', in a checkout: pip install '.[{extra}]'"


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the error's type if there is no message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
