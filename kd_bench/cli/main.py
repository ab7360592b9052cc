"""The command ``kd-bench``, and how errors end it.

The commands are imported inside ``main``, so that Ctrl-C ends their import, too, with a sentence.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from kd_bench.utils.errors import RunFailed, Terminated, UserError, nearest, one_line, prefix
from kd_bench.utils.signals import interrupting_after_imports

if TYPE_CHECKING:
    import typer

    app: typer.Typer

#: The exit code that a shell reports for a program that wrote to a closed pipe.
_CLOSED_PIPE = 141


def __getattr__(name: str) -> Any:
    """Imports ``app``, the commands, on first use."""
    if name == "app":
        from kd_bench.cli.app import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Runs a command. An error that a user can cause is printed as one line on standard error."""
    _open_streams()
    try:
        with interrupting_after_imports(), redirect_stdout(cast(TextIO, _Output(sys.stdout))):
            code = _run(sys.argv[1:])
            sys.stdout.flush()
    except (UserError, RunFailed) as error:
        _exit(str(error), 2 if isinstance(error, UserError) else 1)
    except Terminated as error:
        _exit(f"{error}; the same command goes on from here", error.exit_code)
    except KeyboardInterrupt:
        # Python remembers when Ctrl-C ended code given as a string, and under -m it then kills itself by SIGINT at its
        # end, whatever the exit code. The next code given as a string makes it forget.
        exec("")
        _exit("stopped; the same command goes on from here", 130)
    except BrokenPipeError:
        _discard_output()
        code = _CLOSED_PIPE
    except OSError as error:
        _exit(_describe(error), 1)
    except MemoryError:
        _exit("out of memory", 1)
    except Exception as error:
        # Typer's errors about the command line have this method. Any other error is a bug and keeps its traceback.
        if not hasattr(error, "format_message"):
            raise
        _exit(_describe_usage(error), getattr(error, "exit_code", 2))
    if code:
        sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Runs a command and returns the exit code. Errors and Ctrl-C are raised, which ``app`` itself would handle."""
    import typer

    from kd_bench.cli.app import app

    if "_KD_BENCH_COMPLETE" in os.environ:  # a shell asks for completions
        app(prog_name="kd-bench")
    command = typer.main.get_command(app)
    try:
        with command.make_context("kd-bench", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except typer.Abort:  # a question was not answered
        return 1
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


class _Output:
    """Standard output, whose errors have its name."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes text."""
        with _named_errors():
            return self._stream.write(text)

    def flush(self) -> None:
        """Writes what is buffered."""
        with _named_errors():
            self._stream.flush()


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = "standard output"
        raise


def _open_streams() -> None:
    """Replaces closed streams, and makes characters harmless that a terminal's encoding does not have."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        with suppress(AttributeError):  # not the stream that Python opened
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _describe(error: OSError) -> str:
    """Returns a sentence about an error of the system, which names the file if it is known."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None and isinstance(error, FileNotFoundError):
        try:
            os.getcwd()  # noqa: PTH109
        except FileNotFoundError:
            return "the working folder was removed; change to another one"
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename is not None else reason


def _describe_usage(error: Any) -> str:
    """Returns a sentence about an error of the command line, which names the command and says what is expected.

    The classes of these errors are others from version to version of Typer, but they have the same names.
    """
    message, context, kind = str(error.format_message()), getattr(error, "ctx", None), type(error).__name__
    if kind == "BadOptionUsage" and "requires" in message:
        return f"{error.option_name}: the value is missing"
    if context is None:
        return message
    advice = f"see: {context.command_path} --help"
    if kind == "MissingParameter" and error.param is not None:
        message = _describe_missing(error.param)
    elif kind == "NoSuchOption":
        names = [name for parameter in context.command.get_params(context) for name in parameter.opts]
        hint = nearest(error.option_name.lstrip("-"), (name[2:] for name in names if name.startswith("--")))
        message = f"no option is called {error.option_name!r}; {f'did you mean --{hint}?' if hint else advice}"
    elif match := re.match(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)$", message, re.DOTALL):
        if any("--recipe" in parameter.opts for parameter in context.command.params):
            advice = f"a recipe is named with --recipe; {advice}"
        message = f"too many arguments, from {match[1].split(' ')[0]!r} on; {advice}"
    return f"{prefix(context.command_path.removeprefix('kd-bench').strip())}{message}"


def _describe_missing(parameter: Any) -> str:
    """Returns a sentence about a parameter that is missing."""
    is_argument = parameter.param_type_name == "argument"
    name = f"argument {parameter.name.upper()}" if is_argument else f"option {parameter.opts[0]}"
    meaning = (getattr(parameter, "help", None) or "").rstrip(".")
    if meaning[1:2].islower() or meaning[1:2] == " ":
        meaning = meaning[0].lower() + meaning[1:]
    return f"the {name} is missing{f': {meaning}' if meaning else ''}"


def _discard_output() -> None:
    """Makes what is still to be written to standard output vanish, because Python would try, and fail, at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit(message: str, code: int) -> None:
    with suppress(OSError):
        sys.stderr.write(f"kd-bench: {one_line(message)}\n")
        sys.stderr.flush()
    # What a command has printed so far is still to be written. If that fails too, Python must not complain at its end.
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()
    sys.exit(code)


if __name__ == "__main__":
    main()
