"""The published weights that teachers' cards name: fetching them, and where they lie afterwards."""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kd_bench.models.cards import Card
from kd_bench.models.registry import PREFIX
from kd_bench.utils.errors import RunFailed, UserError
from kd_bench.utils.paths import cache_folder

if TYPE_CHECKING:
    from kd_bench.utils.download import Fetched

Progress = Callable[[int, int | None], None]

#: Seconds to wait for the hub's first answer.
_PATIENCE = 10.0


def folder() -> Path:
    """Where fetched weights lie: ``KD_BENCH_WEIGHTS``, else ``weights`` in kd-bench's cache folder."""
    given = os.environ.get("KD_BENCH_WEIGHTS")
    return Path(given).expanduser() if given else cache_folder() / "weights"


def place(card: Card) -> Path:
    """The file of a card's weights, fetched or not."""
    suffix = ".safetensors" if card.timm else ".pth"
    return folder() / card.dataset / f"{card.name}{suffix}"


def fetched(card: Card | None, name: str, dataset: str, context: str) -> Path:
    """The file of a teacher's published weights.

    Raises:
        UserError: Where none are known, or they were not fetched.
    """
    if card is None or not (card.weights or card.timm):
        raise UserError(f"{context}: no published weights of {name} for {dataset} are known; name a file instead")
    file = place(card)
    if not file.is_file():
        raise UserError(
            f"{context}: the published weights of {name} are not at {file}; "
            f"get them with: kd-bench teacher fetch {card.name} --dataset {dataset}; {by_hand(card)}"
        )
    return file


def by_hand(card: Card) -> str:
    """What to fetch elsewhere where there is no network, where to put it, and how to name it where it lies."""
    if card.timm:
        repository, file = _hub(card)
        size = f", about {_size(4 * card.parameters)}" if card.parameters else ""
        what = f"fetch {file} of {repository} ({_url(repository, file)}{size})"
    else:
        places = (f"{one.url}{f', in it {one.member}' if one.member else ''}" for one in card.weights)
        what = f"fetch {' or '.join(places)}"
    return (
        f"without a network, {what} elsewhere and put it at {place(card)}, "
        f"or name the file: --set teachers.{card.model.removeprefix(PREFIX)}.weights=FILE"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _hub(card: Card) -> tuple[str, str]:
    """Repository and file of a network's weights on the public hub."""
    import timm
    from timm.models._hub import HF_SAFE_WEIGHTS_NAME

    cfg = timm.get_pretrained_cfg(card.model)
    return cfg.hf_hub_id, cfg.hf_hub_filename or HF_SAFE_WEIGHTS_NAME


def _url(repository: str, file: str) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, file)


def _within_reach(repository: str, file: str) -> bool:
    """Whether the hub answers, or has been asked before; its client would take a minute to find out."""
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repository, file), str):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    url = urlsplit(_url(repository, file))
    if urllib.request.getproxies().get(url.scheme):
        return True  # who knows what the proxy reaches
    try:
        socket.create_connection((url.hostname, url.port or (80 if url.scheme == "http" else 443)), _PATIENCE).close()
    except OSError:
        return False
    return True


def fetch(card: Card, progress: Progress | None = None) -> Fetched:
    """Downloads a card's weights from the first of its mirrors that gives them.

    Raises:
        UserError: Where the card names none.
        RunFailed: Where no mirror gives them, or what they give is not what it should be.
    """
    from kd_bench.utils import download

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
    raise RunFailed("; ".join([*failures, by_hand(card)]))


def _from_timm(card: Card) -> Fetched:
    from kd_bench.models import weights
    from kd_bench.utils.download import Fetched

    file = place(card)
    if not file.is_file():
        import timm

        if not _within_reach(*_hub(card)):
            raise RunFailed(f"{card.model}: the hub that timm has its weights from cannot be reached; {by_hand(card)}")
        try:
            network = timm.create_model(card.model, pretrained=True)
        except Exception as error:  # what the hub's client raises without a network is its own affair
            reason = str(error).strip().splitlines()
            raise RunFailed(
                f"{card.model}: timm could not get its weights ({reason[0] if reason else type(error).__name__}); "
                f"{by_hand(card)}"
            ) from None
        file.parent.mkdir(parents=True, exist_ok=True)
        weights.write(file, network.state_dict(), {"model": card.model})
    from kd_bench.utils.files import sha256

    return Fetched(path=file, sha256=sha256(file), url=f"timm:{card.model}", pinned=False)
