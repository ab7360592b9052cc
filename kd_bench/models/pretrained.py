"""Downloads the published weights that teachers' cards name, and finds the downloaded files."""

from __future__ import annotations

import os
import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from kd_bench.models.cards import Card
from kd_bench.models.registry import PREFIX
from kd_bench.utils import download
from kd_bench.utils.errors import RunFailed, UserError, first_line
from kd_bench.utils.files import sha256
from kd_bench.utils.paths import cache_folder

#: Seconds to wait for a connection to the hub.
_HUB_TIMEOUT = 10.0


def weights_folder() -> Path:
    """Returns the folder of downloaded weights: ``KD_BENCH_WEIGHTS``, else ``weights`` in kd-bench's cache folder."""
    path = os.environ.get("KD_BENCH_WEIGHTS")
    return Path(path).expanduser() if path else cache_folder() / "weights"


def weights_path(card: Card) -> Path:
    """Returns the path of a card's weights, downloaded or not."""
    return weights_folder() / card.dataset / f"{card.name}{'.safetensors' if card.timm else '.pth'}"


def require_weights(card: Card | None, name: str, dataset: str, context: str) -> Path:
    """Returns the file of a teacher's published weights.

    Raises:
        UserError: If no weights are published, or they are not downloaded.
    """
    if card is None or not (card.weights or card.timm):
        raise UserError(f"{context}: no published weights of {name} for {dataset} are known; name a file instead")
    path = weights_path(card)
    if not path.is_file():
        raise UserError(
            f"{context}: the published weights of {name} are not at {path}; "
            f"get them with: kd-bench teacher fetch {card.name} --dataset {dataset}; {manual_instructions(card)}"
        )
    return path


def manual_instructions(card: Card) -> str:
    """Returns instructions for a machine without a network: what to download, where to put it, how to name it."""
    if card.timm:
        repository, file, url = _hub_file(card)
        size = 4 * (card.parameters or 0)
        about = f", about {size / 1e9:.2f} GB" if size >= 1e9 else f", about {size / 1e6:.0f} MB" if size else ""
        files = f"{file} of {repository} ({url}{about})"
    else:
        files = " or ".join(
            f"{source.url}{f', in it {source.member}' if source.member else ''}" for source in card.weights
        )
    return (
        f"without a network, fetch {files} elsewhere and put it at {weights_path(card)}, "
        f"or name the file: --set teachers.{card.model.removeprefix(PREFIX)}.weights=FILE"
    )


def fetch(card: Card, progress: download.Progress | None = None) -> download.DownloadedFile:
    """Downloads a card's weights from the first mirror that has them.

    Raises:
        UserError: If the card names no weights.
        RunFailed: If no mirror sends the expected file.
    """
    if card.timm:
        return _fetch_from_timm(card)
    if not card.weights:
        hint = f"; train it with: kd-bench teacher train {card.name} --dataset {card.dataset}" if card.train else ""
        raise UserError(f"{card.path}: names no weights to fetch{hint}")
    failures = []
    for source in card.weights:
        try:
            return download.fetch(
                [source.url], weights_path(card), sha256=source.sha256, member=source.member, progress=progress
            )
        except RunFailed as failure:
            failures.append(str(failure))
    raise RunFailed("; ".join([*failures, manual_instructions(card)]))


def _fetch_from_timm(card: Card) -> download.DownloadedFile:
    path = weights_path(card)
    if not path.is_file():
        import timm

        from kd_bench.models import weights

        if not _hub_reachable(*_hub_file(card)):
            reason = "the hub that timm has its weights from cannot be reached"
            raise RunFailed(f"{card.model}: {reason}; {manual_instructions(card)}")
        try:
            network = timm.create_model(card.model, pretrained=True)
        except Exception as error:  # the hub's client raises various errors without a network
            reason = f"timm could not get its weights ({first_line(error)})"
            raise RunFailed(f"{card.model}: {reason}; {manual_instructions(card)}") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        weights.write(path, network.state_dict(), {"model": card.model})
    return download.DownloadedFile(path=path, sha256=sha256(path), url=f"timm:{card.model}", pinned=False)


def _hub_file(card: Card) -> tuple[str, str, str]:
    """Returns repository, file and URL of a network's weights on the public hub."""
    import timm
    from huggingface_hub import hf_hub_url
    from timm.models._hub import HF_SAFE_WEIGHTS_NAME

    cfg = timm.get_pretrained_cfg(card.model)
    file = cfg.hf_hub_filename or HF_SAFE_WEIGHTS_NAME
    return cfg.hf_hub_id, file, hf_hub_url(cfg.hf_hub_id, file)


def _hub_reachable(repository: str, file: str, url: str) -> bool:
    """Returns whether the file is cached or the hub accepts a connection; the hub's client would need a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(repository, file), str):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    parts = urlsplit(url)
    if urllib.request.getproxies().get(parts.scheme):
        return True  # a proxy may reach the hub
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname, port), _HUB_TIMEOUT).close()
    except OSError:
        return False
    return True
