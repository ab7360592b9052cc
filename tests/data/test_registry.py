import subprocess
import sys
from pathlib import Path

import pytest

from kd_bench.data import registry
from kd_bench.errors import UserError


def test_specs_are_whole() -> None:
    assert registry.names() == ["cifar100", "digits"]
    for name in registry.names():
        spec = registry.spec(name)
        assert spec.name == name
        assert len(spec.mean) == len(spec.std) == spec.channels == 3
        assert len(spec.labels) == len(spec.label_classes)
        assert registry.num_classes_of(name) == spec.num_classes


def test_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"^demo\.yaml: dataset: no dataset is called 'cifar10'; did you mean 'cifar100'\?$"
    ):
        registry.spec("cifar10", "demo.yaml: dataset")
    for call in (registry.check, registry.load, registry.locate, registry.num_classes_of):
        with pytest.raises(UserError, match="did you mean 'digits'"):
            call("digit")


@pytest.mark.parametrize(
    ("name", "labels", "classes", "expected"),
    [
        ("cifar100", None, None, 100),
        ("cifar100", "fine", None, 100),
        ("cifar100", "coarse", None, 20),
        ("cifar100", "coarse", 20, 20),
        ("cifar100", None, 20, 20),
        ("digits", None, 2, 2),
    ],
)
def test_num_classes(name: str, labels: str | None, classes: int | None, expected: int) -> None:
    assert registry.num_classes_of(name, labels, classes) == expected


@pytest.mark.parametrize(
    ("name", "labels", "classes", "message"),
    [
        ("cifar100", "corse", None, "no kind of label of cifar100 is called 'corse'; did you mean 'coarse'?"),
        ("digits", "fine", None, "digits has one kind of label only, so labels: 'fine' must be left out"),
        ("cifar100", None, 1, "classes must be a whole number from 2 to 100 for cifar100, not 1"),
        ("cifar100", None, 101, "classes must be a whole number from 2 to 100 for cifar100, not 101"),
        (
            "cifar100",
            "coarse",
            21,
            "classes must be a whole number from 2 to 20 for cifar100 with coarse labels, not 21",
        ),
        ("digits", None, True, "classes must be a whole number from 2 to 10 for digits, not True"),
    ],
)
def test_wrong_choice_is_one_sentence(name: str, labels: str | None, classes: int | None, message: str) -> None:
    with pytest.raises(UserError) as error:
        registry.check(name, labels=labels, classes=classes, where="a.yaml")
    assert str(error.value) == f"a.yaml: {message}"
    with pytest.raises(UserError):
        registry.load(name, labels=labels, classes=classes)


def test_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.data_dir(None) == Path("data")
    monkeypatch.setenv("KD_BENCH_DATA", "~/sets")
    assert registry.data_dir(None) == Path.home() / "sets"
    assert registry.data_dir(Path("/x")) == Path("/x")


def test_looking_up_and_locating_imports_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from kd_bench.data import registry
from kd_bench.errors import UserError
registry.check("cifar100", labels="coarse", classes=5)
print(registry.locate("digits"))
try:
    registry.locate("cifar100", Path({str(tmp_path)!r}))
except UserError:
    print("missing")
heavy = ("torch", "numpy", "sklearn", "pandas", "pyarrow", "PIL", "torchvision")
print([name for name in heavy if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["files packaged with scikit-learn", "missing", "[]"]
