"""Teachers whose weights are in a file, from the command line to the table."""

import functools
import json
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from kd_bench.models import create, weights

COMPARE = ("compare", "--dataset", "digits", "--teacher", "resnet14", "--student", "resnet8", "--methods", "kd")
QUICK = ("--trials", "1", "--set", "epochs=1", "--set", "batch_size=100")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kd_bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("given") / "teacher.pth"
    torch.save({"model": create("cifar_resnet14", 10).state_dict(), "epoch": 7, "accuracy": 12.5}, path)
    return path


def test_a_given_teacher_is_read_once_and_measured(file, tmp_path):
    out = ("--out", str(tmp_path / "out"))
    done = run(*COMPARE, "--weights", str(file), *QUICK, *out)
    assert done.returncode == 0, done.stderr
    assert "to read: 1 teacher" in done.stderr
    (teacher,) = (tmp_path / "out" / "teachers").glob("[0-9a-f]*")
    result = json.loads((teacher / "result.json").read_text())
    assert result["status"] == "done"
    assert result["epochs"] == 0
    assert f"{result['top1_last']:.2f}" in done.stdout
    network = create("cifar_resnet14", 10)
    weights.load_into(network, weights.read(teacher / "student.safetensors").state, teacher, "cifar_resnet14")
    original = torch.load(file, weights_only=True)["model"]
    assert all(torch.equal(value, original[key]) for key, value in network.state_dict().items())
    students = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("compare*/*/trial.json")]
    assert [trial["teacher"] for trial in students if trial["teacher"]] == [
        json.loads((teacher / "trial.json").read_text())
    ]

    # The path of the file does not matter, its content does.
    moved = shutil.copy(file, tmp_path / "elsewhere.pth")
    again = run(*COMPARE, "--weights", str(moved), *QUICK, *out)
    assert "nothing to train" in again.stderr

    verified = run("teacher", "verify", "resnet14", "--dataset", "digits", "--weights", str(file), *out)
    assert verified.returncode == 1
    assert f"{result['top1_last']:.2f} % now, 12.50 % recorded in the file" in verified.stderr


@pytest.mark.slow
def test_weights_that_are_not_the_teachers(file, tmp_path):
    wrong = [*COMPARE]
    wrong[wrong.index("resnet14")] = "wrn_16_1"
    done = run(*wrong, "--weights", str(file), *QUICK, "--out", str(tmp_path))
    assert done.returncode == 1
    assert "these look like the weights of cifar_resnet14" in done.stderr
    assert "Traceback" not in done.stderr
    missing = run(*COMPARE, "--weights", "nowhere.pth", *QUICK, "--out", str(tmp_path))
    assert missing.returncode == 2
    assert "--weights nowhere.pth: there is no such file" in missing.stderr


def test_published_weights_that_were_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_BENCH_WEIGHTS", str(tmp_path))
    published = run("teacher", "verify", "resnet32x4", "--weights", "published")
    assert published.returncode == 2
    assert "get them with: kd-bench teacher fetch resnet32x4 --dataset cifar100" in published.stderr
    unknown = run("teacher", "verify", "resnet14", "--dataset", "digits", "--weights", "published")
    assert "no published weights of cifar_resnet14 for digits are known" in unknown.stderr


@pytest.mark.slow
def test_published_weights_from_fetching_to_the_table(file, tmp_path, monkeypatch):
    """Uses a card of the user, and a server on this machine."""
    monkeypatch.setenv("KD_BENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(file.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    card = {
        "model": "cifar_resnet14",
        "published_name": "ResNet14",
        "weights": [{"url": f"http://127.0.0.1:{server.server_port}/{name}"} for name in ("none.pth", file.name)],
        "top1": [{"value": 99.0, "source": "nobody"}],
    }
    folder = tmp_path / "teachers" / "digits"
    folder.mkdir(parents=True)
    (folder / "resnet14.yaml").write_text(json.dumps(card))
    fetched = run("teacher", "fetch", "resnet14", "--dataset", "digits")
    assert fetched.returncode == 0, fetched.stderr
    assert "of the first download; none is published" in fetched.stdout
    server.shutdown()
    server.server_close()
    assert "was there already" in run("teacher", "fetch", "resnet14", "--dataset", "digits").stdout
    done = run("teacher", "verify", "resnet14", "--dataset", "digits", "--weights", "published")
    assert done.returncode == 1
    assert "% here, 99.00 % published" in done.stderr
    done = run(*COMPARE, "--weights", "published", *QUICK, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr


def test_convert(file, tmp_path):
    target = tmp_path / "teacher.safetensors"
    done = run("teacher", "convert", str(file), str(target), "--model", "resnet14")
    assert done.returncode == 0, done.stderr
    assert "of cifar_resnet14, from 'model' in a torch file" in done.stdout
    original = torch.load(file, weights_only=True)["model"]
    converted = weights.read(target)
    assert all(torch.equal(converted.state[key], value) for key, value in original.items())
    assert (converted.facts["epoch"], converted.facts["accuracy"]) == (7, 12.5)
    refused = run("teacher", "convert", str(file), str(target), "--model", "resnet8")
    assert refused.returncode == 2
    assert "these look like the weights of cifar_resnet14" in refused.stderr
