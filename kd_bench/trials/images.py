"""Compares the images that results are from, by the digests that trials record."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.config.trial import canonical
from kd_bench.trials.reader import read_trial, trial_settings
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from kd_bench.data.image_digest import ImageRecord


def check_same_images(
    folder: Path, subject: str, content: Mapping[str, Any], images: ImageRecord, *, ordered: bool = False
) -> None:
    """Checks that images have not changed since a trial was trained.

    Args:
        folder: The trial's folder.
        subject: What the trial has from its images, with a verb: "its checkpoints are".
        content: Content of its ``environment.json`` or ``result.json``. Those of earlier versions have no record.
        images: The images now.
        ordered: Whether the same images in another order are others, because methods remember them by their number.

    Raises:
        UserError: If they are others.
    """
    recorded = content.get("images")
    if recorded is None or recorded["kind"] != images["kind"]:
        return
    if recorded["digest"] != images["digest"]:
        difference = f"other images than the present ones (digest {recorded['digest']}, now {images['digest']})"
    elif ordered and recorded["order"] != images["order"]:
        difference = "the same images in another order"
    else:
        return
    raise UserError(
        f"{folder}: {subject} from {difference}; restore them, or remove this folder to train the trial again"
    )


def differing_images(folders: Iterable[Path]) -> Iterator[str]:
    """Yields a sentence for each finished trial that is from other images than most trials with its data set.

    Tables leave such a trial out, if they have trials with the other images.
    """
    trials: dict[str, dict[Path, str]] = defaultdict(dict)
    titles = {}
    for folder in folders:
        record = read_trial(folder)
        images = (record.result or {}).get("images")
        if record.verdict != "done" or images is None:
            continue
        try:
            dataset = trial_settings(record).dataset
        except UserError:  # check_trial names it
            continue
        key = canonical([dataset.model_dump(mode="json"), images["kind"]])
        trials[key][folder] = images["digest"]
        titles[key] = dataset.title
    for key, digests in trials.items():
        usual = Counter(digests.values()).most_common(1)[0][0]
        for folder, digest in digests.items():
            if digest != usual:
                yield (
                    f"{folder}: is from other images of {titles[key]} than most trials here (digest {digest} instead "
                    f"of {usual}), so no table shows it beside them"
                )
