"""Checks for user-defined plug-ins, and the files that ``kd-bench new`` writes."""

import subprocess
import sys
from pathlib import Path

import pytest

from kd_bench.cli.new import new
from kd_bench.testing import SmallRun
from kd_bench.utils.errors import UserError
from tests.plugin_files import NAMES, write


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("own"))


def test_one_of_each_kind_together(files):
    small = SmallRun(files["method"], files["model"], files["model"], files["dataset"], files["augmentation"])
    small.check_gradients()
    small.check_learning()
    small.check_resuming()
    small.check_company()
    small.check_views()
    assert small.trials["own"].method.source and small.trials["own"].augment.own_source


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("kd", {"standardise": True, "temperature": 2, "kd_weight": 9}),
        ("dkd", {"entropy_weights": 3, "warmup_epochs": 2}),
        ("ikl_kd", {"standardise": True, "entropy_weights": 2, "weights": "class", "warmup_epochs": 0}),
    ],
)
def test_settings_of_a_row_beside_hyper_parameters(method, settings):
    small = SmallRun(method, hyperparameters=settings)
    assert small.trials["own"].method.logit_settings()
    small.check_gradients()
    small.check_learning()
    small.check_resuming()
    small.check_company()


@pytest.mark.parametrize(
    ("line", "check", "message"),
    [
        ("return {'loss': 0 * student.logits.sum() + batch.epoch}", "check_learning", "the loss does not fall"),
        ("distance = distance + None", "check_learning", r"training fails: .*bad\.py, line \d+: TypeError"),
        ("student.logits.data.mul_(2)", "check_gradients", "changes its inputs in place"),
        ("return {'loss': student.logits.detach().requires_grad_().sum()}", "check_gradients", "no gradient reaches"),
        ("self.seen = getattr(self, 'seen', 0) + 1; distance *= self.seen", "check_resuming", "ends with another"),
        ("distance = distance * torch.rand((), generator=NOISE)", "check_company", "ends with another"),
    ],
)  # fmt: skip
def test_faulty_methods_are_detected(files, tmp_path, line, check, message):
    text = Path(files["method"].rpartition(":")[0]).read_text()
    text = text.replace("        return {", f"        {line}\n        return {{").replace("self.weight * ", "")
    text = text.replace("class MyLoss", "import torch\nNOISE = torch.Generator()\n\n\nclass MyLoss")
    (tmp_path / "bad.py").write_text(text)
    small = SmallRun(f"{tmp_path / 'bad.py'}:MyLoss", files["model"], files["model"], files["dataset"], epochs=2)
    with pytest.raises(AssertionError, match=message):
        getattr(small, check)()


def test_an_augmentation_that_depends_on_the_batch_is_detected(files, tmp_path):
    text = Path(files["augmentation"].rpartition(":")[0]).read_text()
    (tmp_path / "bad.py").write_text(text.replace("(images * brightness)", "(images - images.float().mean()).abs()"))
    with pytest.raises(AssertionError, match="depends on the batch"):
        SmallRun(augment=f"{tmp_path / 'bad.py'}:my_aug", dataset=files["dataset"]).check_views()


def test_new_overwrites_nothing_and_prints_the_next_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    new("method", "kl_2")
    printed = capsys.readouterr().out
    assert "class Kl2(Method)" in Path("kl_2.py").read_text()
    assert "kd-bench run demo --method kl_2.py:Kl2 --only method=none,kd,ikl_kd,kl_2\n" in printed
    assert "next:\n  pytest test_kl_2.py\n" in printed
    Path("kl_2.py").unlink()
    before = Path("test_kl_2.py").read_bytes()
    with pytest.raises(UserError, match=r"test_kl_2\.py is there already"):
        new("method", "kl_2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test_kl_2.py"]
    assert Path("test_kl_2.py").read_bytes() == before
    for name in ("my-loss", "MyLoss", "class", "test_x", "../x", ""):
        with pytest.raises(UserError, match="should be a name in Python's snake case"):
            new("model", name)
    with pytest.raises(UserError, match="did you mean 'model'"):
        new("modell", "x")
    Path("file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        new("model", "x", Path("file/below"))


def test_new_names_pytest_where_it_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    new("model", "my_net", tmp_path)
    lines = capsys.readouterr().out.partition("next:\n")[2].splitlines()
    assert lines[:2] == ["  pip install pytest", f"  pytest {tmp_path / 'test_my_net.py'}"]
    assert lines[3].endswith(f" --student {tmp_path / 'my_net.py'}:MyNet --methods kd,dist")


@pytest.mark.slow
def test_written_tests_pass(files):
    folder = Path(files["method"]).parent
    tests = [f"test_{name}.py" for name in NAMES.values()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "17 passed" in done.stdout, done.stdout


def test_written_files_keep_to_the_style(files):
    folder = Path(files["method"]).parent
    config = str(Path(__file__).parent.parent / "pyproject.toml")
    for command in (["check", "--ignore", "D1,I001", "--config", config], ["format", "--check", "--config", config]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
