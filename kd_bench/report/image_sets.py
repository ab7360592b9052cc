"""Leaves trials of other images out of a table. Two sets of images may have one name, e.g. if a folder has changed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kd_bench.report.statistics import finished
from kd_bench.utils.text import count

if TYPE_CHECKING:
    import pandas as pd

    from kd_bench.report.summary import FolderResults

#: Status of a finished trial that is left out.
OTHER_IMAGES = "other_images"

#: Number of folders that a sentence names.
_NAMED = 5


def usual_images(trials: pd.DataFrame) -> dict[str, str]:
    """Returns the digest that most finished trials have, by what was digested; that of the first if several are as
    frequent. The trials are those of one dataset; a trial with several rows counts once."""
    done = trials[(trials["status"] == "done") & trials["images"].notna()].drop_duplicates("trial_id")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, digest in zip(done["images_kind"], done["images"], strict=True):
        counts[str(kind)][str(digest)] += 1
    return {kind: digests.most_common(1)[0][0] for kind, digests in counts.items()}


def leave_out_other_images(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the frame with the status ``OTHER_IMAGES`` for finished trials of other images than most on the dataset.

    The numbers of such teachers are left out too. Trials that do not say what images they are from stay.

    Args:
        frame: From ``read_results``.
    """
    frame = frame.copy()
    usual = {str(dataset): usual_images(trials) for dataset, trials in frame.groupby("dataset")}
    for prefix, numbers in (("", []), ("teacher_", ["teacher_top1", "teacher_top1_best"])):
        columns = [f"{prefix}{name}" for name in ("status", "images", "images_kind")]
        other = [
            status == "done" and image != "" and image != usual[dataset].get(kind, image)
            for dataset, status, image, kind in frame[["dataset", *columns]].fillna("").itertuples(index=False)
        ]
        frame.loc[other, columns[0]] = OTHER_IMAGES
        frame.loc[other, numbers] = None
    return frame


def image_notes(frame: pd.DataFrame) -> Iterator[str]:
    """Yields a sentence on the trials that were left out of each dataset, and one on those of unknown images.

    Args:
        frame: From ``leave_out_other_images``.
    """
    for dataset, trials in frame.groupby("dataset", sort=False):
        usual = usual_images(trials)
        columns = {"trial_id": "", "teacher_id": "teacher_"}
        left_out = {
            str(trial): f"{trial} ({short(digest)})"
            for column, prefix in columns.items()
            for trial, digest, status in zip(
                trials[column], trials[f"{prefix}images"], trials[f"{prefix}status"].fillna(""), strict=True
            )
            if status == OTHER_IMAGES
        }
        if left_out:
            named = ", ".join(list(left_out.values())[:_NAMED]) + ", ..." * (len(left_out) > _NAMED)
            yield (
                f"Left out: {count(len(left_out), 'trial')} of other images of {dataset} than the others "
                f"(digest {' or '.join(map(short, usual.values()))}): {named}."
            )
        done = finished(trials).drop_duplicates("trial_id")
        unknown = int(done["images"].isna().sum())
        if unknown and usual:
            yield (
                f"Not known to be of the same images of {dataset}: {count(unknown, 'trial')} of an earlier version, "
                "which did not record them."
            )


def note_differences(parts: Sequence[FolderResults]) -> list[FolderResults]:
    """Returns the parts of a page with a note in each whose images differ from those of another part."""
    names: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    digests = []
    for part in parts:
        titles = {cell.trial_id: cell.dataset for cell in part.cells}
        by_title = part.frame.assign(dataset=part.frame["trial_id"].map(titles)).groupby("dataset")
        of_part = {
            (str(title), kind): digest for title, trials in by_title for kind, digest in usual_images(trials).items()
        }
        for key, digest in of_part.items():
            names[key][digest].append(part.name)
        digests.append(of_part)
    noted = []
    for part, of_part in zip(parts, digests, strict=True):
        notes = [
            f"Not to be compared with {', '.join(others)}: other images of {title} "
            f"(digest {short(other_digest)}, here {short(digest)})."
            for (title, kind), digest in of_part.items()
            for other_digest, others in names[title, kind].items()
            if other_digest != digest
        ]
        summary = replace(part.summary, footnotes=(*notes, *part.summary.footnotes)) if notes else part.summary
        noted.append(replace(part, summary=summary))
    return noted


def short(digest: str) -> str:
    """Returns the digits of a digest that a sentence shows."""
    return digest[:16]
