"""``kd-bench cache``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kd_bench.cli import completion
from kd_bench.cli.command_group import CommandGroup
from kd_bench.cli.options import check_choice

if TYPE_CHECKING:
    from kd_bench.training.logit_cache import LogitFile

KINDS = ("images", "logits", "features", "all")

cache_app = typer.Typer(
    help="Show and clear caches: decoded images, and logits and features of teachers.",
    cls=CommandGroup,
    invoke_without_command=True,
    rich_markup_mode=None,
)


@cache_app.callback()
def cache(context: typer.Context) -> None:
    """Show caches: decoded images, and logits and features of teachers."""
    if context.invoked_subcommand is not None:
        return
    from tabulate import tabulate

    from kd_bench.data import decoded_cache
    from kd_bench.training import logit_cache
    from kd_bench.utils.paths import cache_folder

    splits = decoded_cache.entries(cache_folder())
    files = logit_cache.list_files(logit_cache.logits_folder())
    rows: list[list[Any]] = [["images", split.name, _size(split.size), "", _age(split.used)] for split in splits]
    for file in files:
        content = f"{file.key.get('teacher', '?')} on {file.key.get('dataset', '?')}"
        share = f"{min(1.0, file.disk_bytes / file.full_bytes):.0%} of {_size(file.full_bytes)}"
        rows.append([_content(file), content, _size(file.disk_bytes), share, _age(file.last_used)])
    total = sum(split.size for split in splits) + sum(file.disk_bytes for file in files)
    typer.echo(f"{cache_folder()}: {_size(total)}")
    if rows:
        typer.echo(tabulate(rows, ["kind", "what", "on disk", "known", "last used"], disable_numparse=True))
    typer.echo(
        f"Logits and features: {_size(sum(file.full_bytes for file in files))} when all are known, "
        f"{_size(logit_cache.size_limit())} at most (KD_BENCH_LOGITS_GB; 0 keeps none). "
        "Clear with: kd-bench cache clear"
    )


@cache_app.command("clear")
def clear(
    kind: Annotated[
        str, typer.Argument(help="images, logits, features or all.", autocompletion=completion.cache_kinds)
    ] = "all",
) -> None:
    """Remove caches that no process uses: decoded images, and logits and features of teachers."""
    from kd_bench.data import decoded_cache
    from kd_bench.training import logit_cache
    from kd_bench.trials.accuracy_cache import accuracies_folder
    from kd_bench.utils.paths import cache_folder

    check_choice("kind of cache", kind, KINDS)
    freed = 0
    for file in logit_cache.list_files(logit_cache.logits_folder()):
        if kind not in (_content(file), "all"):
            continue
        if logit_cache.remove_file(file):
            freed += file.disk_bytes
        else:
            typer.echo(f"{file.path}: kept, because it is in use")
    if kind in ("images", "all"):
        for split in decoded_cache.entries(cache_folder()):
            freed += split.size
            split.remove()
            typer.echo(f"removed the decoded images {split.name}")
    if kind == "all":  # some bytes for each teacher with given weights
        for accuracy in accuracies_folder().glob("*.json"):
            accuracy.unlink(missing_ok=True)
    typer.echo(f"freed {_size(freed)}")


def _content(file: LogitFile) -> str:
    """What the rows of a file are: "logits" or "features"."""
    return str(file.key.get("kind", "logits"))


def _size(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _age(timestamp: float) -> str:
    seconds = max(0.0, time.time() - timestamp)
    if seconds >= 86400:
        return f"{seconds // 86400:.0f} d ago"
    return f"{seconds / 3600:.0f} h ago" if seconds >= 3600 else f"{seconds / 60:.0f} min ago"
