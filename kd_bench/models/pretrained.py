"""Downloads the published weights that teachers' cards name, and finds and loads the downloaded files."""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from kd_bench.config.network_names import short_name
from kd_bench.models import cards
from kd_bench.models.cards import Card
from kd_bench.models.timm_names import timm_names
from kd_bench.utils import download
from kd_bench.utils.errors import RunFailed, UserError, first_line, unknown
from kd_bench.utils.files import sha256
from kd_bench.utils.paths import cache_folder, expand_user, is_file

if TYPE_CHECKING:
    from torch import nn

Network = TypeVar("Network", bound="nn.Module")

#: The key that ``weights.read`` reads first; importing its ``KEYS`` would import torch.
_FIRST_KEY = "model"

#: Seconds to wait for a connection to the hub.
_HUB_TIMEOUT = 10.0


def weights_folder() -> Path:
    """Returns the folder of downloaded weights: ``KD_BENCH_WEIGHTS``, else ``weights`` in kd-bench's cache folder."""
    path = os.environ.get("KD_BENCH_WEIGHTS")
    return Path(path).expanduser() if path else cache_folder() / "weights"


def weights_path(card: Card) -> Path:
    """Returns the path of a card's weights, downloaded or not."""
    return weights_folder() / card.dataset / f"{card.name}{'.safetensors' if card.timm else '.pth'}"


def initial_weights_path(model: str) -> Path:
    """Returns the path of timm's weights of a network, downloaded or not, from which training may start."""
    return weights_folder() / "timm" / f"{model}.safetensors"


def initial_weights(model: str, value: str, context: str) -> Path:
    """Returns the file of the weights that the training of a network starts from.

    Args:
        model: Full name of the network.
        value: A path, or ``timm`` for timm's weights of the network.
        context: Key of the value, for error messages.

    Raises:
        UserError: If there is no such file, timm has no weights of the network, or they are not downloaded.
    """
    if value != "timm":
        file = expand_user(value)
        if not is_file(file):
            raise UserError(f"{context}: there is no file {file}")
        return file
    tagged = timm_names().pretrained
    if model not in tagged:
        choices = [name for name in tagged if name.partition(".")[0] == model] or tagged
        raise unknown("network with pretrained weights in timm", model, choices, context)
    path = initial_weights_path(model)
    if not is_file(path):
        raise UserError(
            f"{context}: timm's weights of {model} are not at {path}; get them with: kd-bench teacher fetch {model}; "
            f"without a network, fetch {_hub_title(model)} elsewhere and name the file: "
            f"--set teachers.{model}.pretrained=FILE"
        )
    return path


def input_advice(model: str) -> str:
    """Returns the setting of a pretrained network's input, as far as timm knows it."""
    import timm

    cfg = timm.get_pretrained_cfg(model)
    size = "SIZE" if cfg is None else cfg.input_size[-1]
    return f"input: {{size: {size}, normalise: network}}"


def require_weights(card: Card | None, name: str, dataset: str, context: str) -> Path:
    """Returns the file of a teacher's published weights.

    Raises:
        UserError: If no weights are published, they are not downloaded, or their file holds others that would be read.
    """
    if card is None or not (card.weights or card.timm):
        raise UserError(f"{context}: no published weights of {name} for {dataset} are known; name a file instead")
    path = weights_path(card)
    if not path.is_file():
        raise UserError(
            f"{context}: the published weights of {name} are not at {path}; "
            f"get them with: kd-bench teacher fetch {card.name} --dataset {dataset}; {manual_instructions(card)}"
        )
    _check_key(card, path, context)
    return path


def manual_instructions(card: Card) -> str:
    """Returns instructions for a machine without a network: what to download, where to put it, how to name it."""
    if card.timm:
        size = 4 * (card.parameters or 0)
        about = f", about {size / 1e9:.2f} GB" if size >= 1e9 else f", about {size / 1e6:.0f} MB" if size else ""
        files = _hub_title(card.model, about)
    else:
        files = " or ".join(
            f"{source.url}{f', in it {source.member}' if source.member else ''}" for source in card.weights
        )
    return (
        f"without a network, fetch {files} elsewhere and put it at {weights_path(card)}, "
        f"or name the file: --set teachers.{short_name(card.model)}.weights=FILE"
    )


def fetch(card: Card, progress: download.Progress | None = None) -> download.DownloadedFile:
    """Downloads a card's weights from the first mirror that has them.

    Raises:
        UserError: If the card names no weights.
        RunFailed: If no mirror sends the expected file.
    """
    if card.timm:
        return _fetch_from_timm(card.model, weights_path(card), manual_instructions(card))
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


def fetch_initial_weights(model: str) -> download.DownloadedFile:
    """Downloads timm's weights of a network, from which training may start.

    Raises:
        UserError: If timm has no weights of the network.
        RunFailed: If they cannot be downloaded.
    """
    if model not in timm_names().pretrained:
        raise unknown("network with pretrained weights in timm", model, timm_names().pretrained, "teacher fetch")
    advice = f"fetch {_hub_title(model)} elsewhere and name the file: --set teachers.{model}.pretrained=FILE"
    return _fetch_from_timm(model, initial_weights_path(model), advice)


def load_overlay(model: str, dataset: str | None = None) -> dict[str, Any] | None:
    """Loads the published weights of a network's card, as ``pretrained_cfg_overlay`` for ``timm.create_model``.

    The weights are downloaded unless they exist, with the checks of ``fetch``, and must fit the network strictly.

    Args:
        model: timm's name of the network, with the tag that the card has.
        dataset: Data set of the card; None if weights for only one are known.

    Returns:
        ``state_dict`` and its ``num_classes``; None if no card names weights.

    Raises:
        UserError: If the weights do not fit, or ``dataset`` is missing.
        RunFailed: If they cannot be downloaded.
    """
    import torch

    from kd_bench.models import registry, weights

    matching = [card for card in cards.load_all("teachers", dataset) if card.model == model]
    with_weights = [card for card in matching if card.weights or card.timm]
    if not with_weights:
        return None
    if len(with_weights) > 1:
        datasets = ", ".join(repr(card.dataset) for card in with_weights)
        raise UserError(
            f"model {model}: pretrained=True, but weights for several data sets are known ({datasets}); choose one, as "
            f"in kd_bench.create_model({model!r}, ..., dataset={with_weights[0].dataset!r})"
        )
    path = fetch(with_weights[0]).path
    state = weights.read(path, _key_of(with_weights[0])).state
    with torch.random.fork_rng(devices=[]):  # whoever creates the network draws the same numbers with and without
        classes = weights.num_classes(state, registry.create(model, 1))
        network = registry.create(model, classes or 1)
    weights.load_into(network, state, path, model)
    return {"state_dict": network.state_dict(), "num_classes": classes}


def without_state(network: Network) -> Network:
    """Returns the network after removing the weights that ``load_overlay`` gave it from its configuration."""
    cfg = getattr(network, "pretrained_cfg", None)
    if isinstance(cfg, dict):
        cfg.pop("state_dict", None)
    return network


def _fetch_from_timm(model: str, path: Path, advice: str) -> download.DownloadedFile:
    if not path.is_file():
        import timm

        from kd_bench.models import weights

        network = from_timm(model, lambda: timm.create_model(model, pretrained=True), advice)
        path.parent.mkdir(parents=True, exist_ok=True)
        weights.write(path, network.state_dict(), {"model": model})
    return download.DownloadedFile(path=path, sha256=sha256(path), url=f"timm:{model}", pinned=False)


def from_timm(model: str, create: Callable[[], nn.Module], advice: str = "") -> nn.Module:
    """Returns what ``create`` builds: a network of timm's with its pretrained weights.

    Args:
        model: timm's name of the network.
        create: Builds the network; timm downloads the weights unless they are cached.
        advice: Further sentence for the error of a failed download.

    Raises:
        UserError: If timm has no weights of the network, or ``create`` raises it.
        RunFailed: If the weights cannot be downloaded.
    """
    import timm

    cfg = timm.get_pretrained_cfg(model)
    if cfg is None or not cfg.has_weights:
        raise UserError(f"model {model}: pretrained=True, but timm has no weights of it")
    end = f"; {advice}" if advice else ""
    if cfg.hf_hub_id and not _hub_reachable(model):
        raise RunFailed(f"{model}: the hub that timm has its weights from cannot be reached{end}")
    try:
        return create()
    except UserError:
        raise
    except Exception as error:  # the hub's client raises various errors without a network
        raise RunFailed(f"{model}: timm could not get its weights ({first_line(error)}){end}") from None


def _key_of(card: Card) -> str | None:
    """Returns the key of a card's weights in their file; None for those that are read from a file without a key."""
    key = card.weights[0].key if card.weights else None
    return None if key == _FIRST_KEY else key


def _check_key(card: Card, path: Path, context: str) -> None:
    """Raises UserError if a card names other weights than a training would read from their file."""
    key = _key_of(card)
    if key is None:
        return
    import torch

    from kd_bench.models import weights

    named = weights.read(path, key).state
    with suppress(UserError):
        read = weights.read(path).state
        if named.keys() == read.keys() and all(torch.equal(value, read[name]) for name, value in named.items()):
            return
    raise UserError(
        f"{context}: {card.path} names the weights {key!r} in {path}, and a training reads others from this file; "
        f"write them to a file of their own: kd-bench teacher convert {path} NEW.safetensors --key {key}, and name it: "
        f"--set teachers.{short_name(card.model)}.weights=NEW.safetensors"
    )


def _hub_title(model: str, about: str = "") -> str:
    repository, file, url = _hub_file(model)
    return f"{file} of {repository} ({url}{about})"


def _hub_file(model: str) -> tuple[str, str, str]:
    """Returns repository, file and URL of a network's weights on the public hub."""
    import timm
    from huggingface_hub import hf_hub_url
    from timm.models._hub import HF_SAFE_WEIGHTS_NAME

    cfg = timm.get_pretrained_cfg(model)
    file = cfg.hf_hub_filename or HF_SAFE_WEIGHTS_NAME
    return cfg.hf_hub_id, file, hf_hub_url(cfg.hf_hub_id, file)


def _hub_reachable(model: str) -> bool:
    """Returns whether the file is cached or the hub accepts a connection; the hub's client would need a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    repository, file, url = _hub_file(model)
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
