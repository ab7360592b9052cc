"""Builds the networks and students of trials."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.methods import _registry as methods
from kd_bench.methods.adversarial import AdversarialMethod
from kd_bench.models import registry as models
from kd_bench.models import weights
from kd_bench.models.fast_convs import use_fast_convs
from kd_bench.models.input_transform import InputTransform
from kd_bench.models.outputs import preact_norms, shapes
from kd_bench.training.adversarial import AdversarialStudentModule
from kd_bench.training.isolation import unchanged_process
from kd_bench.training.loaders import Images
from kd_bench.training.student import ResultWriter, StudentModule
from kd_bench.types import Pair
from kd_bench.utils import plugins, seeding
from kd_bench.utils.distributed import is_distributed


def build_network(trial: Trial, images: Images) -> tuple[nn.Module, InputTransform]:
    """Returns the trial's student and its input transform.

    The initial weights depend on the trial's seed and network, and not on the method.
    """
    seeding.seed_global(trial.seed, f"{seeding.WEIGHTS}/{trial.model}")
    network, view = _build(trial, images, trial.channels_last)
    if trial.sync_batch_norm and is_distributed():
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network, view


def load_network(
    trained: Trial | PretrainedTeacher, file: Path, images: Images, channels_last: bool = False
) -> tuple[nn.Module, InputTransform]:
    """Returns a trained network in evaluation mode and its input transform.

    Args:
        trained: The trial or teacher whose weights are in the file.
        file: The weights, in any layout that ``kd_bench.models.weights`` reads.
        images: The data set.
        channels_last: Whether the network keeps images with the channels last.

    Raises:
        UserError: If the file does not hold this network's weights.
    """
    loaded = weights.read(file)
    network, view = _build(trained, images, channels_last)
    weights.load_into(network, loaded.state, file, trained.model)
    return network.eval(), view


def _build(trial: Trial | PretrainedTeacher, images: Images, channels_last: bool) -> tuple[nn.Module, InputTransform]:
    plugins.refuse_changes(trial.model, models.source_hash(trial.model), trial.model_source)
    image_size = images.image_shape[-1]
    options = {"drop_path_rate": trial.drop_path} if isinstance(trial, Trial) and trial.drop_path else {}
    with unchanged_process(trial.model):
        network = models.create(trial.model, images.num_classes, trial.input.size or image_size, **options)
    view = InputTransform(network, trial.input, image_size, images.mean, images.std, channels_last)
    use_fast_convs(network)  # students and teachers alike, so that another evaluation has the same bits
    return network.to(memory_format=torch.channels_last) if channels_last else network, view


def build_student(trial: Trial, images: Images, teacher: nn.Module | None, writer: ResultWriter) -> StudentModule:
    """Returns a student with its method, ready to be trained.

    Raises:
        UserError: If the networks lack what the method needs, or the method's source has changed since it was planned.
    """
    plugins.refuse_changes(trial.method.name, methods.source_hash(trial.method.name), trial.method.source)
    network, view = build_network(trial, images)
    with unchanged_process(trial.method.name):
        needs = methods.load(trial.method.name).needs_with(trial.method.hyperparameters)
    teacher_shapes = None
    norms: tuple[tuple[Tensor, Tensor] | None, ...] = ()
    if teacher and trial.teacher:
        image_shape = _image_shape(trial.teacher, images)
        norms = preact_norms(teacher, image_shape) if "preacts" in needs.teacher else ()
        teacher_shapes = shapes(teacher, image_shape, needs.teacher)
    pair = Pair(
        num_classes=images.num_classes,
        train_size=len(images.train_labels),
        student=shapes(network, _image_shape(trial, images), needs.student),
        teacher=teacher_shapes,
        student_name=trial.model,
        teacher_name=trial.teacher.model if trial.teacher else "none",
        train_labels=images.train_labels if trial.method.source is None else images.train_labels.clone(),
        label_loss=trial.label_loss,
        teacher_norms=norms,
    )
    seeding.seed_global(trial.seed, seeding.METHOD_WEIGHTS)
    with unchanged_process(trial.method.name):
        method = methods.build(trial.method.name, pair, trial.method.hyperparameters)
    use_fast_convs(method)
    if isinstance(method, AdversarialMethod) and isinstance(images, ArrayDataset):
        return AdversarialStudentModule(trial, network, view, method, writer, images)
    return StudentModule(trial, network, view, method, writer)


def _image_shape(trial: Trial | PretrainedTeacher, images: Images) -> tuple[int, ...]:
    channels, *size = images.image_shape
    return (channels, *([trial.input.size] * 2 if trial.input.size else size))
