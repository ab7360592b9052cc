"""A method or network of the user's cannot change another member's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.testing import SmallRun
from kd_bench.training.build import build_network, build_student
from kd_bench.utils.errors import UserError
from tests.training.parts import MemoryWriter, same, splits, train, trial

METHOD = """
import torch
{top}
from kd_bench.losses import cross_entropy
from kd_bench.methods.base import Method
from kd_bench.types import Needs

class Own(Method):
    needs = Needs(teacher=frozenset({{"logits", "stages", "pooled"}}))

    def __init__(self, pair):
        super().__init__(pair)
        self.register_buffer("factor", torch.ones(()))
        {init}

    def forward(self, student, teacher, batch):
        {line}
        return {{"ce": self.factor * cross_entropy(student.logits, batch.labels)}}

    def on_epoch_end(self):
        {end}
"""


def write(
    folder: Path, line: str = "pass", init: str = "pass", top: str = "", end: str = "pass", name: str = "own.py"
) -> str:
    file = folder / name
    file.write_text(METHOD.format(line=line, init=init, top=top, end=end))
    return f"{file}:Own"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("teacher.logits.mul_(0)", "writes into teacher.logits"),
        ("teacher.stages[1].add_(1)", "writes into teacher.stages[1]"),
        ("batch.labels.fill_(0)", "writes into batch.labels"),
        ("batch.images.zero_()", "writes into batch.images"),
        ("batch.index[0] = 3", "writes into batch.index"),
        ("torch.set_default_dtype(torch.float64)", "changes torch's default type of numbers"),
        ("torch._C._set_grad_enabled(False)", "changes whether gradients are computed"),
        ("torch.set_num_threads(3)", "changes the number of torch's threads"),
        ("torch.backends.cudnn.deterministic = True", "changes torch.backends.cudnn.deterministic"),
        ("torch.set_float32_matmul_precision('high')", "changes torch's precision of float32"),
        ("torch.backends.fp32_precision = 'tf32'", "changes torch's precision of float32"),
        ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", "changes torch's precision of float32"),
        ("torch.backends.mkldnn.matmul.fp32_precision = 'bf16'", "changes torch's precision of float32"),
        ("torch.backends.cudnn.conv.fp32_precision = 'ieee'", "changes torch's precision of float32"),
        ("torch.backends.cudnn.allow_tf32 = False", "changes torch's precision of float32"),
        ("torch._C._set_mkldnn_enabled(False)", "changes torch.backends.mkldnn.enabled"),
        ("torch.backends.cuda.enable_flash_sdp(False)", "changes whether attention may use flash_sdp"),
        (
            "torch.nn.modules.module.register_module_forward_hook(lambda *_: None)",
            "changes the hooks of all modules",
        ),
        (
            "torch.nn.modules.module.register_module_full_backward_pre_hook(lambda *_: None)",
            "changes the hooks of all modules",
        ),
    ],
)
def test_who_changes_what_is_shared_fails_alone(tmp_path: Path, line: str, reason: str) -> None:
    data, threads = splits(), torch.get_num_threads()
    precision = torch._C._get_fp32_precision_getter("mkldnn", "matmul")
    kd, plugin = trial("kd"), trial(write(tmp_path, line))
    (alone,) = train([kd], data)
    first, last = train([plugin, kd], data), train([kd, plugin], data)
    for writer in (first[1], last[0]):
        assert same(writer.states, alone.states)
    for writer in (first[0], last[1]):
        assert writer.crash is not None
        assert reason in writer.crash
        assert "\n" not in writer.crash
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert not torch.backends.cudnn.deterministic
    # Torch refuses to read these if its older functions and its newer ones disagree.
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", True)
    assert torch._C._get_fp32_precision_getter("mkldnn", "matmul") == precision
    assert not torch.nn.modules.module._has_any_global_hook()


def test_the_end_of_an_epoch_changes_nothing_that_is_shared(tmp_path: Path) -> None:
    data, kd = splits(), trial("kd")
    plugin = trial(write(tmp_path, end="torch.set_default_dtype(torch.float64)"))
    (alone,) = train([kd], data)
    changing, other = train([plugin, kd], data)
    assert same(other.states, alone.states)
    assert changing.crash is not None and "changes torch's default type of numbers" in changing.crash
    assert torch.get_default_dtype() is torch.float32


def test_draws_at_the_end_of_an_epoch_do_not_depend_on_company(tmp_path: Path) -> None:
    data = splits()
    plugin = trial(write(tmp_path, end="self.factor.copy_(torch.rand(()))"))
    drawing = trial(write(tmp_path, "torch.rand(3)", name="drawing.py"))
    (alone,) = train([plugin], data)
    cohort_writer, _ = train([plugin, drawing], data)
    assert alone.crash is None and alone.states[0]["method"]["factor"] != 1
    assert same(cohort_writer.states, alone.states)
    (resumed,) = train([plugin], data, states=[alone.states[0]])
    assert same(resumed.states[-1], alone.states[-1])


def test_what_bypasses_the_counter_reaches_nobody_and_is_found_by_the_check(tmp_path: Path) -> None:
    data = splits()
    name = write(tmp_path, "batch.labels.data.fill_(0); teacher.logits.data.zero_()")
    kd = trial("kd")
    (alone,) = train([kd], data)
    _, cohort_writer = train([trial(name), kd], data)
    assert same(cohort_writer.states, alone.states)
    with pytest.raises(AssertionError, match=r"writes into batch\.labels"):
        SmallRun(method=name).check_company()


def test_the_check_of_company_finds_what_is_written(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"writes into teacher\.logits"):
        SmallRun(method=write(tmp_path, "teacher.logits.mul_(0)")).check_company()


def build(member_trial: Trial, data: ArrayDataset) -> None:
    assert isinstance(member_trial.teacher, Trial)
    build_student(member_trial, data, build_network(member_trial.teacher, data)[0].eval(), MemoryWriter())


@pytest.mark.parametrize(
    ("part", "line"),
    [("init", "torch.set_default_dtype(torch.float64)"), ("top", "torch.set_num_threads(3)")],
)
def test_a_plug_in_that_changes_the_process_when_it_is_built_is_refused(tmp_path: Path, part: str, line: str) -> None:
    name, data = write(tmp_path, **{part: line}), splits()
    with pytest.raises(UserError, match="a setting of the process on which other methods depend"):
        build(trial(name), data)
    assert torch.get_default_dtype() is torch.float32


def test_the_labels_of_the_data_set_are_not_shared_with_plug_ins(tmp_path: Path) -> None:
    data = splits()
    before = data.train_labels.clone()
    build(trial(write(tmp_path, init="pair.train_labels.zero_()")), data)
    assert torch.equal(data.train_labels, before)


def test_a_network_that_changes_its_input_changes_nobody_else(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(3, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.layer(x.data.relu_().mean((2, 3)))\n"
    )
    data = splits()
    from kd_bench.models import registry as models

    kd = trial("kd")
    plugin = trial("kd", model=f"{file}:Net", model_source=models.source_hash(f"{file}:Net"))
    (alone,) = train([kd], data)
    _, cohort_writer = train([plugin, kd], data)
    assert same(cohort_writer.states, alone.states)
