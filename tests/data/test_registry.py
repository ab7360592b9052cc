import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kd_bench.config.data import Dataset
from kd_bench.data import registry, sources
from kd_bench.utils.errors import UserError

ALL = ["cifar10", "cifar100", "digits", "folder", "imagenet", "parquet", "tiny_imagenet"]


def test_specs_are_whole() -> None:
    assert registry.names() == ALL
    for name in registry.names():
        spec = registry.spec(name)
        assert spec.name == name
        assert len(spec.mean) == len(spec.std) == spec.channels == 3
        assert len(spec.labels) == len(spec.label_classes)
        assert not spec.labels or spec.label_classes[0] == spec.num_classes
        assert not spec.sizes or spec.image_size in spec.sizes
        assert set(spec.options) <= set(Dataset.model_fields)
        assert spec.crop <= spec.image_size // 8


def test_summaries() -> None:
    expected = "Tiny-ImageNet: 200 classes, 100,000 training and 10,000 test images"
    assert registry.spec("tiny_imagenet").summary == expected
    expected = "Folder of images: any number of classes and images, by default of 224 pixels"
    assert registry.spec("folder").summary == expected


def test_unknown_dataset_names_the_nearest() -> None:
    message = r"^demo\.yaml: dataset: no dataset is called 'cifar1000'; did you mean 'cifar100'\?$"
    with pytest.raises(UserError, match=message):
        registry.spec("cifar1000", "demo.yaml: dataset")


@pytest.mark.parametrize(
    "call",
    [registry.check, registry.load, registry.locate, registry.resolve, registry.resolve_spec, registry.download],
)
def test_every_call_refuses_an_unknown_dataset(call: Callable[[Dataset], object]) -> None:
    with pytest.raises(UserError, match="did you mean 'digits'"):
        call(Dataset(name="digit"))


@pytest.mark.parametrize(
    ("dataset", "classes", "size", "crop"),
    [
        (Dataset(name="cifar100"), 100, 32, 4),
        (Dataset(name="cifar100", labels="fine", size=32), 100, 32, 4),
        (Dataset(name="cifar100", labels="coarse"), 20, 32, 4),
        (Dataset(name="cifar100", labels="coarse", classes=20), 20, 32, 4),
        (Dataset(name="cifar100", classes=20), 20, 32, 4),
        (Dataset(name="cifar10"), 10, 32, 4),
        (Dataset(name="digits", classes=2), 2, 32, 2),
        (Dataset(name="tiny_imagenet"), 200, 64, 8),
        (Dataset(name="tiny_imagenet", size=32), 200, 32, 4),
        (Dataset(name="imagenet"), None, 224, 28),
        (Dataset(name="folder", path="x", size=64, classes=7), 7, 64, 8),
        (Dataset(name="parquet", path="x", labels="kind"), None, 224, 28),
    ],
    ids=lambda value: value.title if isinstance(value, Dataset) else str(value),
)
def test_what_is_known_of_a_choice(dataset: Dataset, classes: int | None, size: int, crop: int) -> None:
    registry.check(dataset)
    chosen = registry.resolve_spec(dataset)
    assert (chosen.num_classes, chosen.image_size, chosen.crop) == (classes, size, crop)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (Dataset(name="cifar100"), Dataset(name="cifar100", labels="fine")),
        (Dataset(name="cifar100", labels="coarse", size=32), Dataset(name="cifar100", labels="coarse")),
        (Dataset(name="digits", classes=3), Dataset(name="digits", classes=3)),
        (Dataset(name="tiny_imagenet"), Dataset(name="tiny_imagenet", size=64)),
        (Dataset(name="tiny_imagenet", size=32), Dataset(name="tiny_imagenet", size=32)),
        (Dataset(name="imagenet"), Dataset(name="imagenet", size=224)),
        (Dataset(name="folder", path="x"), Dataset(name="folder", path="x", size=224)),
        (Dataset(name="parquet", path="x"), Dataset(name="parquet", path="x", size=224)),
    ],
    ids=lambda value: value.title,
)
def test_resolving_writes_every_choice_out(dataset: Dataset, expected: Dataset) -> None:
    assert registry.resolve(dataset) == expected
    assert registry.resolve(expected) == expected


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            Dataset(name="cifar100", labels="corse"),
            "no kind of label of cifar100 is called 'corse'; did you mean 'coarse'?",
        ),
        (
            Dataset(name="digits", labels="fine"),
            "digits has one kind of label only, so labels: 'fine' must be left out",
        ),
        (
            Dataset(name="cifar100", classes=101),
            "classes must be a whole number from 2 to 100 for cifar100, not 101",
        ),
        (
            Dataset(name="cifar100", labels="coarse", classes=21),
            "classes must be a whole number from 2 to 20 for cifar100 with coarse labels, not 21",
        ),
        (
            Dataset(name="cifar100", path="here"),
            "cifar100 is known by its name, so path: 'here' must be left out",
        ),
        (Dataset(name="cifar10", size=48), "cifar10 has images of 32 pixels only, so size: 48 must be left out"),
        (Dataset(name="tiny_imagenet", size=48), "size must be 32 or 64 for tiny_imagenet, not 48"),
        (
            Dataset(name="folder"),
            "folder needs a path: the folder named by path, with a folder of images per class in train and in "
            "test, val, valid or validation, or with shards of a WebDataset, train-000000.tar and val-000000.tar",
        ),
    ],
    ids=lambda value: value.title if isinstance(value, Dataset) else "",
)
def test_wrong_choice_is_one_sentence(dataset: Dataset, message: str) -> None:
    with pytest.raises(UserError) as error:
        registry.check(dataset, "a.yaml")
    assert str(error.value) == f"a.yaml: {message}"
    for call in (registry.load, registry.locate, registry.resolve_spec):
        with pytest.raises(UserError) as error:
            call(dataset)
        assert str(error.value) == message


def test_data_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry.resolve_data_dir(None) == Path("data")
    monkeypatch.setenv("KD_BENCH_DATA", "~/sets")
    assert registry.resolve_data_dir(None) == Path.home() / "sets"
    assert registry.resolve_data_dir(Path("/x")) == Path("/x")


def test_a_file_is_all_that_a_built_in_set_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dots.py").write_text(
        """
from kd_bench.data.dataset_spec import DatasetSpec

SPECS = tuple(
    DatasetSpec(name=name, title=name, image_size=8, crop=1, source="made here", downloadable=True)
    for name in ("white_dots", "black_dots")
)

def find(spec, dataset, data_dir):
    return f"{spec.name} in {data_dir}"

def load(spec, dataset, files):
    raise NotImplementedError

def download(spec, data_dir):
    data_dir.joinpath(spec.name).touch()
"""
    )
    (tmp_path / "_helper.py").write_text("raise RuntimeError")
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    registry.built_in.cache_clear()
    try:
        assert registry.names() == sorted([*ALL, "black_dots", "white_dots"])
        assert registry.locate(Dataset(name="black_dots"), tmp_path) == f"black_dots in {tmp_path}"
        registry.download(Dataset(name="white_dots"), tmp_path)
        assert (tmp_path / "white_dots").is_file()
    finally:
        registry.built_in.cache_clear()


def test_looking_up_and_locating_imports_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from kd_bench.data import registry
from kd_bench.utils.errors import UserError
from kd_bench.config.recipe import Dataset
registry.check(Dataset(name="cifar100", labels="coarse", classes=5))
print(registry.locate(Dataset(name="digits")))
for name in registry.names():
    path = "mine" if "path" in registry.spec(name).options else None
    try:
        registry.locate(Dataset(name=name, path=path), Path({str(tmp_path)!r}))
    except UserError:
        print("missing")
heavy = ("torch", "numpy", "sklearn", "pandas", "pyarrow", "PIL", "torchvision")
print([name for name in heavy if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == ["files packaged with scikit-learn", *["missing"] * 6, "[]"]


@pytest.mark.parametrize(
    ("source", "missing"),
    [("SPEC = None\ndef locate(): ...\ndef load(): ...\n", "find"), ("def find(): ...\ndef load(): ...\n", "SPEC")],
)
def test_the_file_of_a_set_that_lacks_something_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, missing: str
) -> None:
    file = tmp_path / f"set_without_{missing.lower()}.py"
    file.write_text(source)
    monkeypatch.setattr(sources, "__path__", [str(tmp_path)])
    sources.built_in.cache_clear()
    try:
        with pytest.raises(UserError) as caught:
            sources.built_in()
    finally:
        sources.built_in.cache_clear()
    assert str(caught.value) == f"{file}: has no {missing}; {sources.__file__} says what the file of a set holds"
