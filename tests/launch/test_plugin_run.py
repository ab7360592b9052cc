"""One plug-in of each kind, trained by worker processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kd_bench.models import weights
from kd_bench.trials import integrity
from kd_bench.utils.errors import UserError
from tests.plugin_files import write


@pytest.mark.slow  # tests/test_testing.py has them in one process
def test_one_of_each_kind_is_trained_by_workers_and_measured_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = write(Path())
    command = [
        sys.executable, "-m", "kd_bench", "compare", "--dataset", own["dataset"], "--teacher", own["model"],
        "--student", own["model"], "--methods", f"ours={own['method']}", "--set", f"augment.own={own['augmentation']}",
        "--set", "epochs=2", "--set", "methods.ours.weight=2", "--set", "dataset.test_images=40", "--trials", "1",
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
