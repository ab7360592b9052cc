"""Evaluates networks: calibration, fidelity, efficiency, robustness. Writes the results beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.evaluation import calibration, corruptions, efficiency, fidelity, out_of_distribution
from kd_bench.evaluation.dataset_reader import DatasetReader
from kd_bench.evaluation.lock import evaluation_lock
from kd_bench.evaluation.target import EvaluationTarget
from kd_bench.evaluation.target_network import DeployedNetwork, load_deployed_network
from kd_bench.models.fast_convs import use_library_convs
from kd_bench.training.build import load_network
from kd_bench.training.evaluate import logits_by_batch
from kd_bench.training.loaders import Images
from kd_bench.trials.environment import describe_environment, utc_timestamp
from kd_bench.trials.evaluation_file import (
    Calibration,
    Corruptions,
    Efficiency,
    Evaluation,
    Fidelity,
    Machine,
    OutOfDistribution,
    Timing,
    read_evaluation_file,
    write_evaluation_file,
)
from kd_bench.trials.folder import TEACHERS, TrialFolder
from kd_bench.trials.images import check_same_images
from kd_bench.trials.result_file import Images as ImagesRecord
from kd_bench.utils.errors import RunFailed, UserError
from kd_bench.utils.files import sha256
from kd_bench.utils.regular_files import BadFile

#: Settings of a teacher.
Teacher = Trial | PretrainedTeacher

#: Called after each batch with what is computed, the number of batches done and their total.
ReportProgress = Callable[[str, int, int], None]


class Outcome(NamedTuple):
    """The outcome of an evaluation.

    Attributes:
        evaluation: All metrics that the network has now.
        path: Their file.
        computed: Names of the metrics that were computed now.
        left_out: A sentence for each metric that was asked for and is not there.
    """

    evaluation: Evaluation
    path: Path
    computed: tuple[str, ...]
    left_out: tuple[str, ...]


class _TestLogits(NamedTuple):
    """Logits, (N, K) float32, and labels, (N,) int64, on the CPU."""

    logits: Tensor
    labels: Tensor


class _Teacher(NamedTuple):
    """A teacher whose weights exist."""

    settings: Teacher
    weights: Path
    sha256: str


class NetworkEvaluator:
    """Evaluates targets one after another. Targets of one data set share its images, those of one teacher its logits.

    Args:
        data: Folder of data sets; None for the default.
        device: ``cpu`` or ``cuda:<n>``.
        threads: CPU threads of one operation, for all but the timing.
        workers: Processes that decode images, for data sets that are not held in memory.
        others: Data sets and folders for ``ood``; none for all data sets that are there.
    """

    def __init__(
        self, data: Path | None, device: str, threads: int = 1, workers: int = 0, others: Sequence[str] = ()
    ) -> None:
        self.device, self.others = torch.device(device), tuple(others)
        self.images, self._threads, self._workers = DatasetReader(data), threads, workers
        self._teacher_logits: tuple[Any, _TestLogits] | None = None

    def evaluate(
        self,
        target: EvaluationTarget,
        metrics: Iterable[str],
        teachers: Sequence[Teacher] = (),
        report_progress: ReportProgress | None = None,
    ) -> Outcome:
        """Computes the metrics that a target lacks, and writes each of them as soon as it is known.

        Args:
            target: The network.
            metrics: Names from ``kd_bench.trials.evaluation_file.METRICS``.
            teachers: The teachers to compare with; their weights are looked for in the results folder.
            report_progress: Called after each batch.

        Raises:
            UserError: If the weights do not fit the network, the file of an earlier evaluation is damaged, or the
                images or weights are not those of the trial's result.
            RunFailed: If logits are not finite, or another process is evaluating the same network.
        """
        torch.set_num_threads(self._threads)
        with evaluation_lock(target.evaluation_path):
            return _Run(self, target, report_progress).finish(tuple(metrics), teachers)

    def recompute(self, target: EvaluationTarget, earlier: Evaluation, teachers: Sequence[Teacher]) -> Evaluation:
        """Returns an evaluation with all but the efficiency of ``earlier`` computed again.

        Fidelity to a teacher whose weights are gone is left out, and so is the accuracy on corrupted images of which
        there are none now, and what is of other images that are gone. Nothing is written.
        """
        torch.set_num_threads(self._threads)
        run = _Run(self, target, None)
        teachers_by_id = {teacher.id: teacher for teacher in teachers}
        pairs = {name: run.fidelity(teachers_by_id[name]) for name in earlier.fidelity if name in teachers_by_id}
        states = run.corruptions(earlier.corruptions, again=True) if earlier.corruptions else ()
        return earlier.model_copy(
            update={
                "calibration": run.calibration() if earlier.calibration is not None else None,
                "fidelity": {name: value for name, value in pairs.items() if isinstance(value, Fidelity)},
                "corruptions": next((state for state in reversed(list(states)) if not isinstance(state, str)), []),
                "ood": run.others_again(earlier.ood),
                "images": run.images_record,
            }
        )

    def machine(self, threads: int | None = None) -> Machine:
        """Describes this machine."""
        described = describe_environment(str(self.device), threads or self._threads)
        return Machine(
            version=described["packages"].get("kd-bench", "unknown"),
            torch=torch.__version__,
            device="cuda" if self.device.type == "cuda" else "cpu",
            device_name=described["device_name"][:200],
            threads=threads or self._threads,
            finished=utc_timestamp(),
        )

    def teacher_logits(self, teacher: _Teacher, images: Images, report_progress: ReportProgress | None) -> _TestLogits:
        """Returns a teacher's logits on the test images of a student; the last ones are kept."""
        key = (teacher.settings.id, teacher.sha256, images.record["order"])
        if self._teacher_logits is None or self._teacher_logits[0] != key:
            network, view = load_network(teacher.settings, teacher.weights, images)
            folded = isinstance(teacher.settings, PretrainedTeacher)  # as it was measured when it was read
            self._teacher_logits = key, self.logits(network, view, images, folded, "teacher", report_progress)
        return self._teacher_logits[1]

    def logits(
        self,
        network: nn.Module,
        view: nn.Module,
        images: Images,
        folded: bool,
        name: str,
        report_progress: ReportProgress | None,
    ) -> _TestLogits:
        """Returns the logits of a network on the test images.

        Raises:
            RunFailed: If they are not finite.
        """

        def progress(batch: int, batches: int) -> None:
            if report_progress is not None:
                report_progress(name, batch, batches)

        batches = [
            (logits.float().cpu(), labels.cpu())
            for logits, labels in logits_by_batch(network, view, images, self.device, progress, folded, self._workers)
        ]
        logits, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        if not logits.isfinite().all():
            raise RunFailed(f"{name}: its logits are not finite, so there is nothing to evaluate")
        return _TestLogits(logits, labels)


class _Run:
    """The evaluation of one target. What several metrics need is computed once."""

    def __init__(
        self, evaluator: NetworkEvaluator, target: EvaluationTarget, report_progress: ReportProgress | None
    ) -> None:
        self._evaluator, self._target, self._report_progress = evaluator, target, report_progress
        self._images = evaluator.images.open(target.trained)
        self.images_record = ImagesRecord(**self._images.record)
        target.check_weights()
        if target.is_trial:
            result = TrialFolder(target.folder.resolve()).result() or {}
            check_same_images(target.folder, "its result is", result, self._images.record)
        self._deployed: DeployedNetwork | None = None
        self._logits: _TestLogits | None = None

    def finish(self, metrics: Sequence[str], teachers: Sequence[Teacher]) -> Outcome:
        """Computes what is missing and returns the outcome."""
        path = self._target.evaluation_path
        evaluation = self._earlier(path)
        computed: list[str] = []
        left_out: list[str] = []

        def keep(name: str, **metric: Any) -> None:
            nonlocal evaluation
            evaluation = evaluation.model_copy(update=metric)
            write_evaluation_file(path, evaluation)
            computed.append(name)

        if "calibration" in metrics and evaluation.calibration is None:
            keep("calibration", calibration=self.calibration())
        if "fidelity" in metrics:
            if not teachers:
                left_out.append(
                    f"{self._target.name}: has no known teacher, so fidelity is left out; a student's teacher is known "
                    "if its trial's folder is evaluated, and that of a student alone if its recipe is"
                )
            for teacher in teachers:
                earlier = evaluation.fidelity.get(teacher.id)
                value = self.fidelity(teacher, earlier)
                if isinstance(value, str):
                    left_out.append(value)
                elif value is not earlier:
                    keep("fidelity", fidelity={**evaluation.fidelity, teacher.id: value})
        if "efficiency" in metrics:
            measured = self.efficiency(evaluation.efficiency)
            if measured is not evaluation.efficiency:
                keep("efficiency", efficiency=measured)
        for name, measure in (("ood", self.others), ("corruptions", self.corruptions)):
            if name not in metrics:
                continue
            for state in measure(getattr(evaluation, name)):
                if isinstance(state, str):
                    left_out.append(state)
                else:
                    keep(name, **{name: state})
        return Outcome(evaluation, path, tuple(dict.fromkeys(computed)), tuple(left_out))

    def _earlier(self, path: Path) -> Evaluation:
        """Returns the earlier evaluation of the same weights and images, or an empty one."""
        try:
            earlier = read_evaluation_file(path)
        except BadFile as error:
            raise UserError(f"{path}: {error}; remove it to evaluate anew") from None
        empty = Evaluation(
            model=self._target.trained.model, weights_sha256=self._target.sha256, images=self.images_record
        )
        is_same = earlier is not None and earlier.subject == empty.subject
        return earlier if earlier is not None and is_same else empty

    @property
    def deployed(self) -> DeployedNetwork:
        """The network."""
        if self._deployed is None:
            self._deployed = load_deployed_network(self._target, self._images)
        return self._deployed

    @property
    def _test(self) -> _TestLogits:
        """The network's logits on the test images."""
        if self._logits is None:
            self._logits = self._logits_on(self.deployed.images, self._target.name)
        return self._logits

    def _logits_on(self, images: Images, name: str) -> _TestLogits:
        network = self.deployed
        return self._evaluator.logits(
            network.network, network.view, images, network.folded, name, self._report_progress
        )

    def calibration(self) -> Calibration:
        """Returns the calibration, with a temperature of the held-out images if there are any."""
        logits, labels = self._test
        held_out = self.deployed.images.holdout
        if held_out is not None:
            fitted_on = self._logits_on(held_out, f"{self._target.name}, held-out images")
            scaled: calibration.Scaled | None = calibration.scale_by_holdout(logits, *fitted_on)
        else:
            scaled = calibration.scale_by_halves(logits, labels)
        return Calibration(
            images=len(labels),
            plain=calibration.probability_errors(logits, labels),
            fitted_on=scaled.fitted_on if scaled else None,
            temperatures=scaled.temperatures if scaled else [],
            scaled=calibration.probability_errors(scaled.logits, labels) if scaled else None,
            machine=self._evaluator.machine(),
        )

    def fidelity(self, settings: Teacher, earlier: Fidelity | None = None) -> Fidelity | str:
        """Returns the fidelity to a teacher: ``earlier`` if it is of the same weights, or why there is none."""
        teacher = self._find_teacher(settings)
        if isinstance(teacher, str):
            return earlier or teacher  # what was computed before the weights were removed stays
        if earlier is not None and earlier.teacher_weights == teacher.sha256:
            return earlier
        logits, labels = self._test
        taught = self._evaluator.teacher_logits(teacher, self._images, self._report_progress)
        values = fidelity.compare_predictions(logits, taught.logits, labels)
        return Fidelity(
            images=len(labels),
            teacher=settings.model,
            teacher_weights=teacher.sha256,
            machine=self._evaluator.machine(),
            **values._asdict(),
        )

    def _find_teacher(self, settings: Teacher) -> _Teacher | str:
        """Returns a teacher, or a sentence that says why fidelity to it cannot be computed."""
        folder = TrialFolder(self._target.folder.resolve().parent.parent / TEACHERS / settings.id)
        done = folder.status() == "done"
        result = folder.result() if done else None
        if result is None:
            return (
                f"{self._target.name}: fidelity is left out, because the weights of its teacher {settings.model} are "
                f"not in {folder.path}; restore them (kd-bench run trains a teacher only for trials that are not "
                "finished)"
            )
        digest = sha256(folder.weights)
        if digest != result["weights_sha256"]:
            raise UserError(f"{folder.weights}: is not what was written: its checksum differs from that in result.json")
        return _Teacher(settings, folder.weights, digest)

    def efficiency(self, earlier: Efficiency | None) -> Efficiency:
        """Returns the efficiency with a timing of this machine; ``earlier`` if that has one."""
        machine = self._evaluator.machine(threads=1)
        if earlier is not None and any(timing.machine.key == machine.key for timing in earlier.timings):
            return earlier
        network = load_deployed_network(self._target, self._images)  # anew: the other may be on a GPU
        use_library_convs(network.bare)
        if earlier is None:
            earlier = Efficiency(
                input=list(network.input_shape),
                parameters=efficiency.count_parameters(network.bare),
                macs=efficiency.count_macs(network.bare, network.input_shape),
                file_bytes=self._target.weights.stat().st_size,
                timings=[],
            )
        device = self._evaluator.device
        network.bare.to(device)
        speeds = []
        with efficiency.one_thread():
            for number, batch in enumerate((1, efficiency.BATCH), 1):
                images = efficiency.random_images(batch, network.input_shape, device)
                speeds.append(efficiency.measure_speed(network.bare, images))
                if self._report_progress is not None:
                    self._report_progress(f"{self._target.name}, timing", number, 2)
        latency, throughput = speeds
        timing = Timing(
            latency=1000 * latency.seconds,
            throughput=efficiency.BATCH / throughput.seconds,
            batch=efficiency.BATCH,
            runs=[latency.runs, throughput.runs],
            machine=machine.model_copy(update={"finished": utc_timestamp()}),
        )
        return earlier.model_copy(update={"timings": [*earlier.timings, timing]})

    def corruptions(self, known: Sequence[Corruptions], again: bool = False) -> Iterator[list[Corruptions] | str]:
        """Yields the accuracies on corrupted images as they become known; see ``evaluate_corruptions``."""
        return corruptions.evaluate_corruptions(
            self._evaluator, self._target, lambda: self.deployed, known, again, self._report_progress
        )

    def others(self, known: Sequence[OutOfDistribution]) -> Iterator[list[OutOfDistribution] | str]:
        """Yields what is known about other sets as it becomes known; see ``evaluate_others``."""
        return out_of_distribution.evaluate_others(
            self._evaluator,
            self._target,
            lambda: self.deployed,
            lambda: self._test.logits,
            known,
            self._report_progress,
        )

    def others_again(self, known: Sequence[OutOfDistribution]) -> list[OutOfDistribution]:
        """Returns what is known about other sets, computed anew; see ``evaluate_again``."""
        return out_of_distribution.evaluate_again(
            self._evaluator, self._target, lambda: self.deployed, lambda: self._test.logits, known
        )
