"""The columns of ``--columns``: top-1, and the metrics of ``kd-bench evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from kd_bench.report import corruption_columns, ood_columns
from kd_bench.report.crossed import Cell
from kd_bench.report.statistics import MeanAndStd
from kd_bench.report.summary import SummaryRow
from kd_bench.trials.evaluation_file import Efficiency, Errors, Evaluation, Fidelity, Timing
from kd_bench.utils.errors import UserError, nearest


class Value(NamedTuple):
    """A value of a trial, how it was measured, and the trial's cell. Only values of equal protocols are averaged."""

    value: float
    protocol: str
    cell: Cell | None = None


@dataclass(frozen=True)
class ResultColumn:
    """A column of a table of results.

    Attributes:
        title: Lines of its header, without the unit.
        unit: Unit of the printed values; empty for none.
        digits: Decimals of the printed values.
        better: Which values are better.
        meaning: What it is, as the predicate of a sentence.
        metric: The metric of ``kd-bench evaluate`` that it is a part of; empty for a column of every trial's result.
        values: Returns the values of an evaluation for the teachers with these ids, the best known first.
        of_row: Returns the value of a row, for a column of every trial's result.
        of_result: Returns the values of a trial's ``result.json``, for a column that has a protocol; None for others.
        scale: Factor from stored values, which CSV has, to printed ones.
        counted: Whether values are counted and not measured, so that a standard deviation of zero says nothing.
    """

    title: tuple[str, ...]
    unit: str
    digits: int
    better: Literal["higher", "lower"]
    meaning: str
    metric: str = ""
    values: Callable[[Evaluation, Iterable[str]], list[Value]] = lambda *_: []
    of_row: Callable[[SummaryRow], MeanAndStd | None] = lambda _: None
    of_result: Callable[[Mapping[str, Any]], list[Value]] | None = None
    scale: float = 1.0
    counted: bool = False

    @property
    def has_protocol(self) -> bool:
        """Whether its values say how they were measured."""
        return bool(self.metric) or self.of_result is not None

    @property
    def header(self) -> tuple[str, ...]:
        """Lines of the header, with the unit."""
        return (*self.title[:-1], f"{self.title[-1]} {self.unit}".strip())

    @property
    def name(self) -> str:
        """The title on one line."""
        return " ".join(self.title)

    def format(self, value: float) -> str:
        """Returns a stored value as it is printed, without the unit."""
        return f"{value * self.scale:.{self.digits}f}"

    def spread(self, value: MeanAndStd) -> str:
        """Returns mean and standard deviation as they are printed."""
        mean = self.format(value.mean)
        without_std = value.std is None or (self.counted and value.std == 0)
        return mean if without_std else f"{mean} ± {self.format(value.std or 0.0)}"

    @property
    def note(self) -> str:
        """The sentence below a table that says what the column is."""
        name = self.name.replace(",", "")
        return f"{name[0].upper()}{name[1:]} {self.meaning}; {self.better} is better."


def _calibration(read: Callable[[Errors], float], scaled: bool) -> Callable[[Evaluation, Iterable[str]], list[Value]]:
    def values(evaluation: Evaluation, _: Iterable[str]) -> list[Value]:
        calibration = evaluation.calibration
        if calibration is None:
            return []
        errors = calibration.scaled if scaled else calibration.plain
        if errors is None:
            return []
        protocol = evaluation.describe_images(calibration.images)
        temperature = "cross-fitted" if calibration.fitted_on == "cross-fitted" else f"of {calibration.fitted_on}"
        return [Value(read(errors), f"temperature {temperature}, {protocol}" if scaled else protocol)]

    return values


def _fidelity(read: Callable[[Fidelity], float | None]) -> Callable[[Evaluation, Iterable[str]], list[Value]]:
    def values(evaluation: Evaluation, teachers: Iterable[str]) -> list[Value]:
        fidelities = (evaluation.fidelity[name] for name in teachers if name in evaluation.fidelity)
        pairs = ((read(fidelity), fidelity) for fidelity in fidelities)
        return [Value(value, evaluation.describe_images(item.images)) for value, item in pairs if value is not None]

    return values


def _efficiency(read: Callable[[Efficiency], float]) -> Callable[[Evaluation, Iterable[str]], list[Value]]:
    def values(evaluation: Evaluation, _: Iterable[str]) -> list[Value]:
        size = evaluation.efficiency
        return [] if size is None else [Value(read(size), "")]

    return values


def _timing(read: Callable[[Timing], float], batched: bool) -> Callable[[Evaluation, Iterable[str]], list[Value]]:
    def values(evaluation: Evaluation, _: Iterable[str]) -> list[Value]:
        size = evaluation.efficiency
        timings = [] if size is None else size.timings
        machines = [timing.machine.title + f", batches of {timing.batch}" * batched for timing in timings]
        return [Value(read(timing), machine) for timing, machine in zip(timings, machines, strict=True)]

    return values


def _pairs(read: corruption_columns.Read | ood_columns.Read) -> Callable[[Evaluation, Iterable[str]], list[Value]]:
    return lambda evaluation, _: [Value(value, protocol) for value, protocol in read(evaluation)]


def _energy(result: Mapping[str, Any]) -> list[Value]:
    energy = result.get("energy")
    if not energy or not energy["joules"]:
        return []
    counters = " + ".join(energy["joules"])
    return [Value(sum(energy["joules"].values()), f"{counters}, {energy['device']}, the whole device")]


_SCALED = "divided by a temperature that was fitted on other images"

#: All columns by the name that the user types.
COLUMNS: dict[str, ResultColumn] = {
    "top1": ResultColumn(
        ("top-1",), "%", 2, "higher", "is the accuracy on the test set after the last epoch",
        of_row=lambda row: row.top1,
    ),
    "top1_best": ResultColumn(
        ("best epoch,", "selected on", "the test set"), "%", 2, "higher",
        "is the accuracy of the epoch with the highest one on the test set, therefore optimistic",
        of_row=lambda row: row.best,
    ),
    "gap": ResultColumn(
        ("best minus", "last epoch"), "points", 2, "lower",
        "is what choosing the epoch on the test set adds to the accuracy of the last one",
        of_row=lambda row: row.gap,
    ),
    "val_top1": ResultColumn(
        ("held-out", "top-1"), "%", 2, "higher",
        "is the accuracy on held-out training images after the last epoch",
        of_row=lambda row: row.held_out,
    ),
    "top1_val_best": ResultColumn(
        ("epoch", "selected on", "held-out"), "%", 2, "higher",
        "is the accuracy on the test set of the epoch with the highest one on held-out training images",
        of_row=lambda row: row.selected,
    ),
    "energy": ResultColumn(
        ("energy,",), "Wh", 2, "lower",
        "is that of the training epochs as if the trial were trained alone, in watt-hours, with the work of other "
        "processes on the device", scale=1 / 3600, of_result=_energy,
    ),
    "ece": ResultColumn(
        ("ECE",), "%", 2, "lower", "is the expected calibration error of the predicted class, in 15 bins",
        "calibration", _calibration(lambda item: item.ece, False),
    ),
    "nll": ResultColumn(
        ("NLL",), "", 4, "lower", "is the mean negative log-likelihood of the labels, in nats",
        "calibration", _calibration(lambda item: item.nll, False),
    ),
    "brier": ResultColumn(
        ("Brier",), "", 4, "lower", "is the squared error of the probabilities, summed over the classes, from 0 to 2",
        "calibration", _calibration(lambda item: item.brier, False),
    ),
    "ece_scaled": ResultColumn(
        ("ECE,", "scaled"), "%", 2, "lower", f"is that of logits {_SCALED}",
        "calibration", _calibration(lambda item: item.ece, True),
    ),
    "nll_scaled": ResultColumn(
        ("NLL,", "scaled"), "", 4, "lower", f"is that of logits {_SCALED}",
        "calibration", _calibration(lambda item: item.nll, True),
    ),
    "brier_scaled": ResultColumn(
        ("Brier,", "scaled"), "", 4, "lower", f"is that of logits {_SCALED}",
        "calibration", _calibration(lambda item: item.brier, True),
    ),
    "agreement": ResultColumn(
        ("agreement", "with teacher"), "%", 2, "higher", "counts the images for which both predict the same class",
        "fidelity", _fidelity(lambda item: item.agreement),
    ),
    "kl_to_teacher": ResultColumn(
        ("KL to", "teacher"), "", 4, "lower", "is the mean KL(teacher || student) at temperature 1, in nats",
        "fidelity", _fidelity(lambda item: item.kl),
    ),
    "agreement_on_errors": ResultColumn(
        ("agreement where", "teacher errs"), "%", 2, "higher",
        "counts, of the images that the teacher classifies wrongly, those with the same prediction of the student",
        "fidelity", _fidelity(lambda item: item.agreement_on_errors),
    ),
    "parameters": ResultColumn(
        ("parameters,",), "M", 3, "lower", "are those of the deployed network, in millions",
        "efficiency", _efficiency(lambda item: item.parameters), scale=1e-6, counted=True,
    ),
    "macs": ResultColumn(
        ("MACs,",), "M", 2, "lower", "are multiplications with addition of one image, in millions",
        "efficiency", _efficiency(lambda item: item.macs), scale=1e-6, counted=True,
    ),
    "file_size": ResultColumn(
        ("file,",), "MB", 2, "lower", "is the size of the file of weights, in megabytes",
        "efficiency", _efficiency(lambda item: item.file_bytes), scale=1e-6, counted=True,
    ),
    "latency": ResultColumn(
        ("latency,",), "ms", 3, "lower", "is the median time of one image alone, in milliseconds",
        "efficiency", _timing(lambda item: item.latency, False),
    ),
    "throughput": ResultColumn(
        ("throughput,",), "images/s", 1, "higher", "is the number of images a second in batches, by the median time",
        "efficiency", _timing(lambda item: item.throughput, True),
    ),
    **{
        name: ResultColumn(title, "%", 2, better, meaning, "ood", _pairs(read))
        for name, (read, title, better, meaning) in ood_columns.READERS.items()
    },
    **{
        name: ResultColumn(title, "%", 2, "higher", meaning, "corruptions", _pairs(read))
        for name, (read, title, meaning) in corruption_columns.READERS.items()
    },
}  # fmt: skip

#: Columns that are shown of several metrics together.
MAIN = ("ece", "nll", "agreement", "kl_to_teacher", "parameters", "macs", "latency", "auroc", corruption_columns.MEAN)


def parse_columns(text: str | None, option: str = "--columns") -> tuple[str, ...]:
    """Returns the names in a text with commas; none for None.

    Raises:
        UserError: If there is no such column, or one is named twice.
    """
    names = () if text is None else tuple(name.strip() for name in text.split(","))
    if "" in names:
        raise UserError(f"{option}: a name is lacking (it is {text!r}); names of columns stand between commas, e.g. "
                        "top1,ece")  # fmt: skip
    check_columns(names, option)
    return names


def check_columns(names: Iterable[str], option: str = "columns") -> None:
    """Raises a UserError if there is no column of a name, or if a name is there twice."""
    seen = set()
    for name in names:
        if name not in COLUMNS:
            hint, parts = nearest(name.lower(), COLUMNS), corruption_columns.COLUMN_OF.values()
            whole = ", ".join(column for column in COLUMNS if column not in parts)
            end = f"did you mean {hint!r}?" if hint else f"there are: {whole}, and corrupted_NAME for each corruption"
            raise UserError(f"{option}: no column is called {name!r}; {end}")
        if name in seen:
            raise UserError(f"{option}: {name} is there twice")
        seen.add(name)
