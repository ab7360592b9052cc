"""``kd-bench cache``: what is kept to save work, shown and cleared."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from kd_bench.utils.errors import unknown

#: What can be kept: a teacher's logits, and decoded images.
KINDS = ("logits", "images", "all")

cache_app = typer.Typer(
    help="What is kept to save work: decoded images, teachers' logits.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


@cache_app.callback()
def cache(context: typer.Context) -> None:
    """Show what is kept to save work: decoded images and teachers' logits."""
    if context.invoked_subcommand is None:
        _show()


@cache_app.command("clear")
def clear(kind: Annotated[str, typer.Argument(help="logits, images or all.")] = "all") -> None:
    """Remove what is kept, but what somebody is using."""
    from kd_bench.data import decoded_cache as images
    from kd_bench.training import logit_cache
    from kd_bench.utils.paths import cache_folder

    if kind not in KINDS:
        raise unknown("kind of what is kept", kind, KINDS)
    freed = 0
    if kind != "images":
        for entry in logit_cache.entries(logit_cache.folder()):
            if logit_cache.remove(entry):
                freed += entry.size
            else:
                typer.echo(f"{entry.path}: in use, and so kept")
    if kind != "logits":
        for split in images.entries(cache_folder()):
            freed += split.size
            split.remove()
            typer.echo(f"removed the decoded images {split.name}")
    typer.echo(f"freed {_size(freed)}")


def _show() -> None:
    from tabulate import tabulate

    from kd_bench.data import decoded_cache as images
    from kd_bench.training import logit_cache
    from kd_bench.utils.paths import cache_folder

    place = cache_folder()
    rows: list[list[Any]] = []
    total = 0
    for split in images.entries(place):
        rows.append(["images", split.name, _size(split.size), "", _ago(split.used)])
        total += split.size
    kept = logit_cache.entries(logit_cache.folder())
    for entry in kept:
        what = f"{entry.about.get('teacher', '?')} on {entry.about.get('dataset', '?')}"
        share = f"{min(1.0, entry.size / entry.full):.0%} of {_size(entry.full)}"
        rows.append(["logits", what, _size(entry.size), share, _ago(entry.used)])
        total += entry.size
    typer.echo(f"{place}: {_size(total)}")
    if rows:
        typer.echo(tabulate(rows, ["kind", "what", "on disk", "known", "last used"], disable_numparse=True))
    typer.echo(
        f"Logits: {_size(sum(one.full for one in kept))} when all are known, {_size(logit_cache.allowed())} at most "
        "(KD_BENCH_LOGITS_GB; 0 keeps none). Clear with: kd-bench cache clear"
    )


def _size(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _ago(when: float) -> str:
    days, seconds = divmod(max(0.0, time.time() - when), 86400)
    if days >= 1:
        return f"{days:.0f} d ago"
    return f"{seconds / 3600:.0f} h ago" if seconds >= 3600 else f"{seconds / 60:.0f} min ago"
