"""Results for notebooks: frames of pandas, tables and figures of what is in a results folder.

All numbers come from ``kd_bench.report``, which the command line prints, too. pandas and matplotlib are imported by the
first call that needs them.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench import api
from kd_bench.launch.options import require_package
from kd_bench.python_api.arguments import method_names, named_as_in_python, recipe_names, results_folder
from kd_bench.utils.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from kd_bench.report.summary import FolderResults, PairTable

#: Columns of text of ``Results.differences``.
_NAMES = ("recipe", "dataset", "teacher", "student", "label", "baseline")

#: All columns but the first by name, and those of the CSV table that they are.
_DIFFERENCES = {
    **{name: name for name in _NAMES[1:]},
    "n": "difference_n",
    "mean": "difference_mean",
    "low": "difference_low",
    "high": "difference_high",
    **{name: name for name in ("p_paired_t", "p_paired_t_holm", "p_sign_flip", "p_sign_flip_holm")},
    **{name: name for name in ("bootstrap_low", "bootstrap_high")},
    "teachers": "difference_teachers",
    "seeds": "difference_seeds",
}


#: Headings of several tables, by format.
_HEADINGS = {"terminal": "{}\n\n", "plain": "{}\n\n", "markdown": "## {}\n\n", "html": "<h3>{}</h3>\n"}


def load(
    out: str | Path = "runs",
    *,
    recipes: str | Path | Iterable[str | Path] | None = None,
    methods: str | Iterable[str] | None = None,
) -> Results:
    """Reads the results in a folder.

    Args:
        out: The results folder.
        recipes: Files or names of recipes whose results to read, done or not, or a single one; None for everything in
            the folder.
        methods: Additional rows of these recipes: methods, ``FILE.py:CLASS`` or ``LABEL=FILE.py:CLASS``.

    Raises:
        UserError: If there are no results, or an argument is invalid.
    """
    folder = results_folder(out, "load")
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder of results; kd_bench.compare makes one")
    names, rows = recipe_names(recipes, "load"), [] if methods is None else method_names(methods, "load")
    if rows and not names:
        raise UserError("load: methods: name the recipe that they are rows of, as recipes=")
    with named_as_in_python():
        return Results(api.report_parts(names, rows, folder))


class Results:
    """Results of one or more comparisons. Accuracies are top-1 on the test set in percent.

    Attributes:
        parts: The results of each recipe or folder.
        failed: Why trials have no result, by the trial's id; only from ``compare`` and ``run``.
    """

    def __init__(self, parts: Iterable[FolderResults], failed: Mapping[str, str] | None = None) -> None:
        self.parts = tuple(parts)
        self.failed = dict(failed or {})

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    @property
    def pairs(self) -> list[str]:
        """Titles of the pairs of networks, by which ``plot_curves`` and the others select one."""
        return list(self._pairs())

    def frame(self) -> pd.DataFrame:
        """Returns a row for each trial: its settings, status, accuracies in percent, times in seconds.

        ``label`` is the row of the table, and ``status`` is done, failed, missing or damaged, with a ``reason``.
        ``teacher_seed`` is the seed of the trial's teacher, missing without a teacher that was trained here. A
        trial that several pairs share, such as the student alone, has a row in each.
        """
        import pandas as pd

        frames = []
        for part in self.parts:
            frame = part.frame.copy()
            frame.insert(0, "recipe", pd.Series([part.folder.name] * len(frame), dtype="string"))
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def table(self, format: str = "terminal") -> ResultsTable:
        """Returns the table that ``kd-bench table`` prints. A notebook shows it, and ``str`` is its text.

        Args:
            format: Format of the text: terminal, markdown, plain, latex, latex-long, csv or html.

        Raises:
            UserError: If there is no such format.
        """
        from kd_bench.report.render import FORMATS

        if format not in FORMATS:
            raise unknown("format", format, FORMATS, "table")
        return ResultsTable(self.parts, format)

    def differences(self) -> pd.DataFrame:
        """Returns a row for each method that is compared with the baseline, with statistics over the common seeds.

        ``mean`` is the mean difference to the baseline in percentage points, paired by seed, over ``n`` seeds, and
        ``low`` and ``high`` are the ends of its 95 % interval (paired t). The p-values are two-sided; those with
        "holm" are corrected for the number of methods of the pair. The bootstrap interval needs 8 seeds. If students
        are crossed with several teachers, ``n`` is ``teachers`` times ``seeds`` (which are missing otherwise), and
        interval and p-value are those for other teachers and other seeds.
        """
        import pandas as pd

        rows = []
        for part in self.parts:
            for record in _csv_records(part):
                if record["difference_n"] is not None:
                    values = {name: record[column] for name, column in _DIFFERENCES.items()}
                    rows.append({"recipe": part.folder.name, **values})
        kinds = {name: "string" if name in _NAMES else "float64" for name in ("recipe", *_DIFFERENCES)} | {"n": "int64"}
        return pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=kinds[name]) for name in kinds})

    def plot_curves(self, pair: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Draws test accuracy by epoch: mean and range over the seeds of each method.

        Args:
            pair: Title of the pair, one of ``pairs``; may be left out if there is only one.
            ax: Axes to draw on; None for new ones.

        Returns:
            The axes.

        Raises:
            UserError: If there is no such pair, or matplotlib is not installed.
        """
        from kd_bench.report.figures import draw_curves
        from kd_bench.report.trial_files import read_details

        part, table = self._pair(pair)
        trials = [trial for row in table.rows for trial in row.trials]
        curves = {trial: read_details(part.folder / trial).curves.get("top1", ()) for trial in trials}
        return _draw("plot_curves", lambda axes: draw_curves(table, curves, axes), ax)

    def plot_differences(self, pair: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Draws each method's difference to the baseline with its 95 % interval. As ``plot_curves``."""
        from kd_bench.report.figures import draw_differences

        part, table = self._pair(pair)
        return _draw("plot_differences", lambda axes: draw_differences(table, part.summary.baseline, axes), ax)

    def plot_cost(self, pair: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Draws accuracy against the seconds that an epoch takes. As ``plot_curves``."""
        from kd_bench.report.figures import draw_cost

        _, table = self._pair(pair)
        return _draw("plot_cost", lambda axes: draw_cost(table, axes), ax)

    def _pairs(self) -> dict[str, tuple[FolderResults, PairTable]]:
        """The pairs by title, which begins with the recipe's name if there are several recipes."""
        several = len(self.parts) > 1
        return {
            f"{part.name}: {pair.title}" if several else pair.title: (part, pair)
            for part in self.parts
            for pair in part.summary.pairs
        }

    def _pair(self, title: str | None) -> tuple[FolderResults, PairTable]:
        pairs = self._pairs()
        if title is None and len(pairs) == 1:
            return next(iter(pairs.values()))
        if title is None:
            raise UserError(f"pair: there are several; name one of them: {'; '.join(pairs)}")
        if title not in pairs:
            raise unknown("pair", title, pairs)
        return pairs[title]


class ResultsTable:
    """The table of results: text by ``str`` and ``print``, HTML in a notebook."""

    def __init__(self, parts: Sequence[FolderResults], format: str) -> None:
        self._parts, self._format = parts, format

    def __str__(self) -> str:
        return self._rendered(self._format).removesuffix("\n")

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self._rendered("html")

    def _rendered(self, format: str) -> str:
        from kd_bench.report.summary_text import write_summary

        texts = []
        for part in self._parts:
            stream = io.StringIO()
            write_summary(part.summary, format, stream)
            texts.append(self._heading(part.name, format) + stream.getvalue())
        return "\n".join(texts)

    def _heading(self, name: str, format: str) -> str:
        """The name of a part, if there are several and the format is one to read."""
        if len(self._parts) == 1 or format not in _HEADINGS:
            return ""
        return _HEADINGS[format].format(html.escape(name) if format == "html" else name)


def _csv_records(part: FolderResults) -> list[dict[str, Any]]:
    """Returns the rows of the summary's CSV table, with numbers in full precision."""
    from kd_bench.report.summary_text import summary_tables

    ((table,), _) = summary_tables(part.summary, "csv")
    names = [column.header[0] for column in table.columns]
    return [dict(zip(names, row.cells, strict=True)) for row in table.rows]


def _draw(name: str, draw: Callable[[Axes], None], axes: Any) -> Axes:
    """Draws on axes, or on new ones, and returns them."""
    require_package("matplotlib", name, "notebook")
    if axes is None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(layout="constrained")
    draw(axes)
    result: Axes = axes
    return result
