"""Groups of commands."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperGroup

from kd_bench.utils.errors import unknown


class CommandGroup(TyperGroup):
    """A group that lists its commands if none is named, and suggests the nearest for a mistyped one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the group's own options."""
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            raise typer.Exit
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands with the first sentence of each one's help, over as many lines as it takes."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, _first_sentence(command.help or "")) for name, command in commands if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the command that the first argument names.

        Raises:
            UserError: If there is no such command.
        """
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            group = ctx.command_path.removeprefix("kd-bench").strip()
            raise unknown("command", name, self.list_commands(ctx), group)
        return super().resolve_command(ctx, args)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]
