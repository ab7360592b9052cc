"""The published weights that teachers' cards name: fetching them, and where they lie afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.errors import RunFailed, UserError
from kd_bench.models.zoo import Card
from kd_bench.resources import cache_folder

if TYPE_CHECKING:
    from kd_bench.download import Fetched

Progress = Callable[[int, int | None], None]


def folder() -> Path:
    """Where fetched weights lie: ``KD_BENCH_WEIGHTS``, else ``weights`` in kd-bench's cache folder."""
    given = os.environ.get("KD_BENCH_WEIGHTS")
    return Path(given).expanduser() if given else cache_folder() / "weights"


def place(card: Card) -> Path:
    """The file of a card's weights, fetched or not."""
    suffix = ".safetensors" if card.timm else ".pth"
    return folder() / card.dataset / f"{card.name}{suffix}"


def fetched(card: Card | None, name: str, dataset: str, where: str) -> Path:
    """The file of a teacher's published weights.

    Raises:
        UserError: Where none are known, or they were not fetched.
    """
    if card is None or not (card.weights or card.timm):
        raise UserError(f"{where}: no published weights of {name} for {dataset} are known; name a file instead")
    file = place(card)
    if not file.is_file():
        raise UserError(
            f"{where}: the published weights of {name} are not at {file}; "
            f"get them with: kd-bench teacher fetch {card.name} --dataset {dataset}"
        )
    return file


def fetch(card: Card, progress: Progress | None = None) -> Fetched:
    """Downloads a card's weights from the first of its mirrors that gives them.

    Raises:
        UserError: Where the card names none.
        RunFailed: Where no mirror gives them, or what they give is not what it should be.
    """
    from kd_bench import download

    if card.timm:
        return _from_timm(card)
    if not card.weights:
        how = f"; train it with: kd-bench teacher train {card.name} --dataset {card.dataset}" if card.train else ""
        raise UserError(f"{card.path}: names no weights to fetch{how}")
    failures = []
    for source in card.weights:
        try:
            return download.fetch(
                [source.url], place(card), sha256=source.sha256, member=source.member, progress=progress
            )
        except RunFailed as failure:
            failures.append(str(failure))
    raise RunFailed("; ".join(failures))


def _from_timm(card: Card) -> Fetched:
    from kd_bench.download import Fetched
    from kd_bench.models import weights

    file = place(card)
    if not file.is_file():
        import timm

        try:
            network = timm.create_model(card.model, pretrained=True)
        except Exception as error:  # what the hub's client raises without a network is its own affair
            reason = str(error).strip().splitlines()
            raise RunFailed(
                f"{card.model}: timm could not get its weights ({reason[0] if reason else type(error).__name__})"
            ) from None
        file.parent.mkdir(parents=True, exist_ok=True)
        weights.write(file, network.state_dict(), {"model": card.model})
    from kd_bench.files import sha256

    return Fetched(path=file, sha256=sha256(file), url=f"timm:{card.model}", pinned=False)
