"""The footnotes on rows that cost more than a table shows: layers that stay in the student, and second views."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def cost_notes(frame: pd.DataFrame) -> Iterator[str]:
    """Yields a sentence for each row whose students keep layers of the method, and one on rows with two views.

    Args:
        frame: From ``read_results``.
    """
    has_more = (frame["parameters"] > frame["kept_parameters"]).fillna(False)
    done = frame[(frame["status"] == "done") & has_more & (frame["kept_parameters"] > 0).fillna(False)]
    for label, trials in done.groupby("label", sort=False):
        counts = trials["kept_parameters"].astype("int64")
        shares = 100 * counts / (trials["parameters"].astype("int64") - counts)
        yield (
            f"Larger students: {label} keeps layers at inference, in place of the classifier: "
            f"{_range([f'{count:+,}' for count in sorted(set(counts))])} parameters "
            f"({_range([f'{share:.1f}' for share in sorted(set(shares))])} % of the student's others)."
        )
    second = frame["protocol"].map(_has_second_view)
    labels = list(dict.fromkeys(frame.loc[second, "label"]))
    if labels:
        yield (
            f"Two views: each step of {', '.join(labels)} runs student and teacher on two views of every image; the "
            "seconds include both."
        )


def _range(texts: Sequence[str]) -> str:
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def _has_second_view(protocol: Any) -> bool:
    return isinstance(protocol, str) and json.loads(protocol).get("second_view") is not None
