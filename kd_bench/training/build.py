"""Builds the networks and students of trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kd_bench.config.optimizer import DOT
from kd_bench.config.teacher_start import allows_features
from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.methods import _registry as methods
from kd_bench.methods.adversarial import AdversarialMethod
from kd_bench.methods.base import Method
from kd_bench.models import registry as models
from kd_bench.models import weights
from kd_bench.models.fast_convs import use_fast_convs
from kd_bench.models.initial_weights import create_from_file
from kd_bench.models.input_transform import InputTransform
from kd_bench.models.outputs import average_classifier, preact_norms, shapes
from kd_bench.models.student_with_head import StudentWithHead, check_head, has_head, remove_classifier
from kd_bench.models.trainable import freeze
from kd_bench.training.adversarial import AdversarialStudentModule
from kd_bench.training.features import OpenFeatureFile, feature_length
from kd_bench.training.head_on_features import HeadOnFeaturesModule
from kd_bench.training.isolation import unchanged_process
from kd_bench.training.loaders import Images
from kd_bench.training.partly_trained import PartlyTrainedModule
from kd_bench.training.result_writer import ResultWriter
from kd_bench.training.student import StudentModule
from kd_bench.types import Pair
from kd_bench.utils import plugins, seeding
from kd_bench.utils.distributed import is_distributed
from kd_bench.utils.errors import UserError


def build_network(trial: Trial, images: Images, pretrained: Path | None = None) -> tuple[nn.Module, InputTransform]:
    """Returns the trial's student and its input transform.

    The initial weights depend on the trial's seed and network, and not on the method. With ``pretrained`` they come
    from this file, except for the classifier's.
    """
    seeding.seed_global(trial.seed, f"{seeding.WEIGHTS}/{trial.model}")
    network, view = _build(trial, images, trial.channels_last, pretrained)
    if methods.describe(trial.method.name).keeps_layers:
        remove_classifier(network, trial.model, trial.method.name)
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
    state = weights.read(file).state
    network, view = _build(trained, images, channels_last)
    if isinstance(trained, Trial) and keeps_layers(trained, state):
        network = add_head(trained, images, network)
    weights.load_into(network, state, file, trained.model)
    return network.eval(), view


def keeps_layers(trial: Trial, state: Mapping[str, Tensor]) -> bool:
    """Whether a trial's weights, of which this should be the state, contain the inference head of its method."""
    if trial.method.source is not None and not has_head(state):
        return False  # whatever the present file of a user's method says
    return methods.describe(trial.method.name).keeps_layers


def add_head(trial: Trial, images: Images, network: nn.Module) -> nn.Module:
    """Returns a trial's student with the inference head of its method in place of the network's classifier.

    The head has the size that the trained one has, and initial weights.
    """
    remove_classifier(network, trial.model, trial.method.name)
    teacher = None if trial.teacher is None else _build(trial.teacher, images, channels_last=False)[0].eval()
    head = _build_method(trial, images, network, teacher).inference_head
    assert head is not None
    return StudentWithHead(network, head)


def _build(
    trial: Trial | PretrainedTeacher, images: Images, channels_last: bool, pretrained: Path | None = None
) -> tuple[nn.Module, InputTransform]:
    plugins.refuse_changes(trial.model, models.source_hash(trial.model), trial.model_source)
    image_size = images.image_shape[-1]
    options = {"drop_path_rate": trial.drop_path} if isinstance(trial, Trial) and trial.drop_path else {}
    size = trial.input.size or image_size
    with unchanged_process(trial.model):
        if pretrained is None:
            network = models.create(trial.model, images.num_classes, size, **options)
        else:
            network = create_from_file(pretrained, trial.model, images.num_classes, size, **options)
    view = InputTransform(network, trial.input, image_size, images.mean, images.std, channels_last)
    use_fast_convs(network)  # students and teachers alike, so that another evaluation has the same bits
    return network.to(memory_format=torch.channels_last) if channels_last else network, view


def build_student(
    trial: Trial,
    images: Images,
    teacher: nn.Module | None,
    writer: ResultWriter,
    pretrained: Path | None = None,
    open_features: OpenFeatureFile | None = None,
) -> StudentModule:
    """Returns a student with its method, ready to be trained.

    Args:
        trial: The settings.
        images: The data set.
        teacher: The teacher's network; None without a teacher.
        writer: Receives the results.
        pretrained: File of the weights that training starts from. Without it a trial that has initial weights begins
            with random ones, which suffices to count and to time its steps.
        open_features: Opens the file of the features of a network whose classifier is trained. None: the whole network
            runs in every step.

    Raises:
        UserError: If the networks lack what the method needs, the method's source has changed since it was planned, or
            the file does not hold the network's weights.
    """
    network, view = build_network(trial, images, pretrained)
    method = _build_method(trial, images, network, teacher)
    if method.inference_head is not None and trial.sync_batch_norm and is_distributed():
        method.inference_head = nn.SyncBatchNorm.convert_sync_batchnorm(method.inference_head)
    if trial.trainable != "all":
        return _build_partly_trained(trial, images, network, view, method, writer, open_features)
    if isinstance(method, AdversarialMethod) and isinstance(images, ArrayDataset):
        return AdversarialStudentModule(trial, network, view, method, writer, images)
    return StudentModule(trial, network, view, method, writer)


def _build_partly_trained(
    trial: Trial,
    images: Images,
    network: nn.Module,
    view: InputTransform,
    method: Method,
    writer: ResultWriter,
    open_features: OpenFeatureFile | None,
) -> StudentModule:
    shape = _image_shape(trial, images)
    trained = freeze(network, trial.trainable, shape, trial.model)
    if open_features is not None and isinstance(images, ArrayDataset) and allows_features(trial):
        length = feature_length(network, shape)
        if length is not None:
            return HeadOnFeaturesModule(trial, network, view, method, writer, trained, images, length, open_features)
    return PartlyTrainedModule(trial, network, view, method, writer, trained)


def _build_method(trial: Trial, images: Images, network: nn.Module, teacher: nn.Module | None) -> Method:
    plugins.refuse_changes(trial.method.name, methods.source_hash(trial.method.name), trial.method.source)
    with unchanged_process(trial.method.name):
        needs = methods.needs(trial.method.name, trial.method.hyperparameters)
    teacher_shapes = None
    norms: tuple[tuple[Tensor, Tensor] | None, ...] = ()
    classifier: tuple[Tensor, Tensor] | None = None
    if teacher and trial.teacher:
        image_shape = _image_shape(trial.teacher, images)
        norms = preact_norms(teacher, image_shape) if "preacts" in needs.teacher else ()
        if needs.teacher & {"features", "class_maps"}:
            classifier = average_classifier(teacher, image_shape)
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
        teacher_classifier=classifier,
    )
    seeding.seed_global(trial.seed, seeding.METHOD_WEIGHTS)
    with unchanged_process(trial.method.name):
        method = methods.build(trial.method.name, pair, trial.method.hyperparameters, trial.method)
        if method.inference_head is not None:
            check_head(method.inference_head, pair.student.features, images.num_classes, trial.method.name)
    if isinstance(trial.optimizer, DOT) and not method.needs.teacher:
        raise UserError(
            f"optimizer.name: 'dot' needs a method that distils in the student's own epochs, and {trial.method.name!r} "
            "reads the teacher only in its preparation; choose 'sgd' for it"
        )
    use_fast_convs(method)
    return method


def _image_shape(trial: Trial | PretrainedTeacher, images: Images) -> tuple[int, ...]:
    channels, *size = images.image_shape
    return (channels, *([trial.input.size] * 2 if trial.input.size else size))
