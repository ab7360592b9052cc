"""One plug-in of each kind, trained by worker processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kd_bench.models import weights
from kd_bench.trials import integrity
from kd_bench.utils.errors import UserError
from tests.plugin_files import write


@pytest.mark.slow  # tests/test_testing.py has them in one process
def test_one_of_each_kind_is_trained_by_workers_and_measured_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = write(Path())
    command = [
        sys.executable, "-m", "kd_bench", "compare", "--dataset", files["dataset"], "--teacher", files["model"],
        "--student", files["model"], "--methods", f"ours={files['method']}",
        "--set", f"augment.own={files['augmentation']}", "--set", "epochs=2", "--set", "methods.ours.weight=2",
        "--set", "dataset.test_images=40", "--trials", "1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ours" in done.stdout and "Incomplete" not in done.stdout
    (folder,) = [path for path in Path("runs").iterdir() if path.name.startswith("compare")]
    assert folder.name == "compare-my_data.py-my_data-my_net.py-MyNet-my_net.py-MyNet"
    results = {}
    for path in folder.glob("*/trial.json"):
        trial = json.loads(path.read_text())
        assert trial["model_source"] and trial["dataset"]["source"] and trial["augment"]["own_source"]
        results[trial["method"]["name"]] = json.loads(path.with_name("result.json").read_text())
        assert weights.read(path.with_name("student.safetensors")).state["fc.weight"].shape == (4, 64)
    assert set(results) == {"none", "my_loss.py:MyLoss"}
    assert all(len(result["class_top1_last"]) == 4 for result in results.values())

    trial_folder = next(folder.glob("*/trial.json")).parent
    assert integrity.check_accuracy(trial_folder, None, "cpu") is None
    Path("my_net.py").write_text(Path("my_net.py").read_text() + "# another file\n")
    with pytest.raises(UserError, match=r"my_net\.py:MyNet: the file was changed since"):
        integrity.check_accuracy(trial_folder, None, "cpu")


WRONG = """
from kd_bench.methods.base import Method
from kd_bench.types import Needs

class Own(Method):
    family = "baseline"
    needs_teacher = False
    needs = Needs(teacher=frozenset())

    def __init__(self, pair, *, mistake: str = "none"):
        super().__init__(pair)
        self.mistake = mistake
        if mistake == "init":
            raise ValueError("no such thing")

    def forward(self, student, teacher, batch):
        if self.mistake == "raises":
            raise RuntimeError("of two\\nlines")
        if self.mistake == "right":
            return {"ce": self.label_loss(student, batch)}

    def parameters(self, recurse=True):
        return {}["no parameters"] if self.mistake == "parameters" else super().parameters(recurse)


class NoSuper(Method):
    family = "baseline"
    needs_teacher = False
    needs = Needs(teacher=frozenset())

    def __init__(self, pair):
        self.classes = pair.num_classes

    def forward(self, student, teacher, batch):
        return {"ce": self.label_loss(student, batch)}
"""


def test_errors_name_file_line_and_log_and_the_others_are_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(WRONG)
    mistakes = ("right", "returns", "raises", "init", "parameters")
    rows = {name: {"method": "own.py:Own", "mistake": name} for name in mistakes}
    rows["super"] = {"method": "own.py:NoSuper"}
    recipe = {
        "dataset": {"name": "digits", "train_images": 40, "test_images": 20},
        "pairs": [{"teacher": None, "student": "resnet8"}],
        "methods": rows,
        "epochs": 1,
        "trials": 1,
        "batch_size": 20,
        "baseline": "right",
    }
    Path("r.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "kd_bench", "run", "r.yaml", "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    failures = {}
    for line in done.stderr.splitlines():
        before, failed, reason = line.partition(": failed: ")
        if failed:
            failures[before.split(", ")[1]] = reason
    (log,) = Path("runs/r/logs").glob("*.log")
    file, end = f"{tmp_path / 'own.py'}", f" (log: {log})"
    assert failures == {
        "returns": "own.py, line 16: Own.forward returns nothing; it should return the loss by term, e.g. "
        f'{{"ce": self.label_loss(student, batch), "distance": distance}}{end}',
        "raises": f"own.py, line 18: RuntimeError: of two{end}",
        "init": f"method 'own.py:Own': Own in {file} failed: ValueError: no such thing (line 14){end}",
        "parameters": f"own.py, line 23: KeyError: 'no parameters'{end}",
        "super": f"method 'own.py:NoSuper': __init__ should call super().__init__(pair) first ({file}){end}",
    }
    assert "started again" not in done.stderr
    text = log.read_text()
    for error in ("RuntimeError: of two", "ValueError: no such thing", "UserError: own.py, line 16"):
        assert error in text
    results = [json.loads(path.read_text()) for path in Path("runs/r").glob("*/result.json")]
    assert [result["status"] for result in results] == ["done"]
