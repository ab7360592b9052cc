"""User-defined networks, data sets and augmentations: names, checks, identity. For methods: tests/methods."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_bench import api
from kd_bench.config.data import Augment, Dataset, Input
from kd_bench.config.load import read_recipe
from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.data import registry as datasets
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.augment.plugin import Random
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.models import registry as models
from kd_bench.plan import plan, plan_pretrained_teacher
from kd_bench.report.trial_data import training_command
from kd_bench.training.build import build_network
from kd_bench.training.loaders import loaders
from kd_bench.utils import plugins
from kd_bench.utils.errors import UserError
from tests.plugin_files import write

BUILT_IN = {  # of the trials that these recipes had before there were such plug-ins
    "demo": "272bb99b03179e76",
    "cifar100/table6": "5a84a3a74621b81d",
    "robustness/digits": "1fccbbbac042f9bc",
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    return write(Path())


def recipe(files: dict[str, str], **changes: Any) -> dict[str, Any]:
    return {
        "name": "r",
        "dataset": {"name": files["dataset"], "train_images": 64, "test_images": 40},
        "pairs": [
            {"teacher": files["model"], "student": "resnet8"},
            {"teacher": "resnet14", "student": files["model"]},
        ],
        "methods": {"mine": {"method": files["method"]}, "none": {}},
        "augment": {"own": files["augmentation"]},
        "trials": 1,
    } | changes


def refusal(function: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit(file: str, old: str, new: str) -> None:
    path = Path(file.rpartition(":")[0])
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("name", BUILT_IN)
def test_trials_without_plug_ins_have_the_identities_that_they_had(name):
    # OFD on ShuffleNet-V2 has the published pre-activations since; without this setting it is the trial that it was.
    as_before = ["pairs.4.methods.ofd.student_preacts=before_relu"] if name == "cifar100/table6" else []
    ids = [cell.trial_id for cell in plan(read_recipe(name, as_before), name)]
    assert hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16] == BUILT_IN[name]


def test_hashes_of_all_files_are_in_the_trial(files):
    hashes = {
        kind: hashlib.sha256(Path(f"{name.rpartition(':')[0]}").read_bytes()).hexdigest()
        for kind, name in files.items()
    }
    first, _, third, fourth = plan(read_recipe(recipe(files)), "r")
    settings = first.trial.settings()
    assert (settings["method"]["name"], settings["method"]["source"]) == ("my_loss.py:MyLoss", hashes["method"])
    assert (settings["augment"]["own"], settings["augment"]["own_source"]) == (
        "my_aug.py:my_aug",
        hashes["augmentation"],
    )
    assert settings["dataset"] == {
        "name": "my_data.py:my_data",
        "labels": None,
        "classes": None,
        "size": 16,
        "train_images": 64,
        "test_images": 40,
        "source": hashes["dataset"],
    }
    assert (settings["teacher"]["model"], settings["teacher"]["model_source"]) == ("my_net.py:MyNet", hashes["model"])
    assert "model_source" not in settings
    assert third.trial.model_source == fourth.trial.model_source == hashes["model"]
    assert Trial.model_validate_json(json.dumps(settings)).id == first.trial_id
    assert (first.trial.augment.crop, first.trial.augment.flip) == (2, True)


def test_paths_to_one_file_are_one_name(files):
    trial_ids = [cell.trial_id for cell in plan(read_recipe(recipe(files)), "r")]
    dotted = {kind: f"./{name}" for kind, name in files.items()}
    assert [cell.trial_id for cell in plan(read_recipe(recipe(dotted)), "r")] == trial_ids
    selected = plan(read_recipe(recipe(dotted)), "r", ["student=MyNet", "teacher=resnet14"])
    assert [cell.trial_id for cell in selected] == trial_ids[2:]
    assert plan(read_recipe(recipe(dotted)), "r", ["student=./my_net.py:MyNet"]) == selected


def test_an_edited_file_makes_new_trials_and_is_refused_for_old_ones(files):
    images = datasets.load(Dataset(name=files["dataset"]))
    with_net, without = [plan(read_recipe(recipe(files)), "r")[index].trial for index in (2, 1)]
    build_network(with_net, images)
    loaders(with_net, images, torch.device("cpu"))
    edit(files["model"], "width: int = 16", "width: int = 8")
    assert "my_net.py:MyNet: the file was changed since this trial was planned" in refusal(
        build_network, with_net, images
    )
    build_network(without, images)
    edit(files["augmentation"], "0.5 *", "0.6 *")
    assert "my_aug.py:my_aug: the file was changed" in refusal(loaders, with_net, images, torch.device("cpu"))
    edit(files["dataset"], "200", "201")
    assert "my_data.py:my_data: the file was changed" in refusal(datasets.load, with_net.dataset)
    replanned = plan(read_recipe(recipe(files)), "r")
    assert not {with_net.id, without.id} & {cell.trial_id for cell in replanned}


def test_a_pretrained_teacher_has_the_hash_too(files, tmp_path):
    (tmp_path / "w").write_bytes(b"weights")
    teacher, _ = plan_pretrained_teacher(Dataset(name="digits"), "my_net.py:MyNet", "w", "r")
    other, _ = plan_pretrained_teacher(Dataset(name="digits"), "cifar_resnet8", "w", "r")
    assert teacher.model_source == models.source_hash("my_net.py:MyNet")
    assert other == PretrainedTeacher(
        dataset=other.dataset, model="cifar_resnet8", weights=teacher.weights, input=Input()
    )
    assert "model_source" not in other.settings()


def test_planning_imports_neither_torch_nor_plugins(files, tmp_path):
    for path in tmp_path.glob("*.py"):
        path.write_text(path.read_text() + "\nraise SystemExit('this file must not be run')\n")
    code = (
        "import json, sys; from kd_bench.config.load import read_recipe; from kd_bench.plan import plan\n"
        "from kd_bench.cli.show import describe\n"
        f"files = json.loads({json.dumps(files)!r}); content = json.loads({json.dumps(recipe(files))!r})\n"
        "print(len(plan(read_recipe(content), 'r')), sum(len(describe(name)) > 50 for name in files.values()))\n"
        "print([name for name in ('torch', 'numpy', 'timm', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "4 4\n[]\n", done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augment": {"own": "gone.py:x"}}, "augment.own: augmentation 'gone.py:x': there is no file gone.py"),
        ({"augment": {"own": "my_aug.py:my_agu"}}, "my_aug.py is called 'my_agu'; did you mean 'my_aug'?"),
        ({"augment": {"own": "my_aug.py"}}, "the name is missing; write my_aug.py:NAME"),
        ({"augment": {"own": "my_net.py:MyNet"}}, "augmentation 'my_net.py:MyNet': MyNet should take 'images'"),
        ({"augment": {"own": "blur"}}, "no augmentation is called 'blur'"),
        ({"augment": {"own_source": "0" * 64}}, "augment.own_source must be left out without augment.own"),
        ({"augment": {"own": "my_aug.py:my_aug", "own_source": "0" * 64}}, "my_aug.py:my_aug: the file was changed"),
        ({"dataset": "my_aug.py:my_aug"}, "dataset: dataset 'my_aug.py:my_aug': my_aug should take 'data_dir'"),
        ({"dataset": "my_date.py:x"}, "there is no file my_date.py"),
        ({"dataset": {"name": "digits", "source": "0" * 64}}, "digits comes with kd-bench, so source: "),
        ({"dataset": {"name": "my_data.py:my_data", "source": "0" * 64}}, "my_data.py:my_data: the file was changed"),
        ({"dataset": {"name": "my_data.py:my_data", "path": "x"}}, "so path: 'x' must be left out"),
        ({"pairs": [{"teacher": "my_data.py:my_data", "student": "resnet8"}]}, "my_data should take 'num_classes'"),
        ({"pairs": [{"teacher": "resnet8", "student": "my_net.py:MyNte"}]}, "did you mean 'MyNet'?"),
        ({"pairs": [{"teacher": "resnet8", "student": "my_net.py"}]}, "the name is missing; write my_net.py:NAME"),
    ],
)
def test_unknown_names(files, change, message):
    assert message in refusal(lambda: plan(read_recipe(recipe(files, **change)), "r.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("num_classes: int,", "classes: int,"), "MyNet should take 'num_classes'"),
        (
            ("image_size: int = 32, width: int = 16", "width: int"),
            "MyNet is called without 'width', which therefore needs a default",
        ),
        (("    def __init__(", "    def init("), "MyNet has no __init__ of its own, which should take num_classes"),
        (("class MyNet(nn.Module):", "class MyNet(nn.Module) x:"), "is not valid Python"),
        (('"""A network, for a teacher or a student."""', "1 / 0"), "cannot be imported: ZeroDivisionError"),
        (("third, num_classes)", "third, 3)"), "should return logits (B, 5) for images (B, 3, 16, 16); for one"),
        (("third, num_classes)", "second, num_classes)"), "cannot take images of 3x16x16"),
        (("return self.forward_head(", "return x.nothing("), "its forward pass failed: AttributeError"),
        (("super().__init__()", "super().__init__(); 1 / 0"), "MyNet in {} failed: ZeroDivisionError"),
        (("class MyNet(nn.Module):", "class MyNet(dict):"), "should be a torch.nn.Module with parameters"),
    ],
)
def test_invalid_networks(files, change, message):
    edit(files["model"], *change)
    path = Path("my_net.py").resolve()
    assert message.format(path) in refusal(models.create, "my_net.py:MyNet", 5, 16)


def test_a_network_gets_the_arguments_that_it_takes(files):
    edit(files["model"], "image_size: int = 32", "drop_path_rate: float = 0.0")
    network = models.create("my_net.py:MyNet", 5, 16, drop_path_rate=0.1)
    assert network(torch.zeros(2, 3, 20, 20)).shape == (2, 5)
    assert "takes no argument 'in_chans'" in refusal(models.create, "my_net.py:MyNet", 5, 16, in_chans=1)
    assert models.source_hash("cifar_resnet8") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("image_size: int = 16", "image_size: int"), "should take '*, image_size: int = 32'"),
        (("image_size: int = 16", "image_size: int = 4 * 4"), "should take '*, image_size: int = 32'"),
        (("images[:200], labels[:200]", "images[:200], labels[:199]"), "train_labels should be (200,) whole numbers"),
        (
            ("dtype=torch.uint8", "dtype=torch.int16"),
            "my_data in {} failed: ValueError: train_images should be (N, 1 or",
        ),
        (
            ('"column", "both")', '"column")'),
            "train_labels should be from 0 to 2 for 3 class names, and go from 0 to 3",
        ),
        (
            ("return ArrayDataset", "return dict(a=1) or ArrayDataset"),
            "should return kd_bench.data.array_dataset.ArrayDataset, not dict",
        ),
        (("(400, 1, image_size, image_size)", "(400, 1, 20, 20)"), "should make images of 16 pixels, not 20"),
        (("torch.arange(400) % 4", "open('no file')"), "failed: FileNotFoundError"),
    ],
)
def test_invalid_data_sets(files, change, message):
    edit(files["dataset"], *change)
    assert message.format(Path("my_data.py").resolve()) in refusal(datasets.load, Dataset(name=files["dataset"]))


def test_a_data_set_is_like_any_other(files):
    few = datasets.load(Dataset(name=files["dataset"], classes=3, size=24, train_images=30))
    assert few.class_names == ("none", "row", "column") and few.image_shape == (3, 24, 24)
    assert few.train_labels.bincount().tolist() == [10, 10, 10]
    assert datasets.spec(files["dataset"]).title == "Bars in noise: none, a horizontal one, a vertical one, or both"
    assert "cannot be downloaded" in refusal(datasets.download, Dataset(name=files["dataset"]))


def test_a_data_set_that_draws_from_global_generators_is_always_the_same(files):
    edit(files["dataset"], "torch.arange(400) % 4", "torch.from_numpy(__import__('numpy').random.randint(0, 4, 400))")
    dataset, other = (datasets.load(Dataset(name=files["dataset"])) for _ in range(2))
    assert torch.equal(dataset.train_labels, other.train_labels) and dataset.train_labels.unique().numel() == 4


def test_splits_from_arrays():
    grey = np.arange(2 * 16, dtype=np.uint8).reshape(2, 1, 4, 4)
    splits = ArrayDataset.from_arrays(grey, [0, 1], grey, np.array([1, 2], np.uint8))
    assert splits.train_images.shape == (2, 3, 4, 4) and splits.train_images.is_contiguous()
    assert (splits.class_names, splits.test_labels.tolist()) == (("0", "1", "2"), [1, 2])
    assert splits.mean == pytest.approx((15.5 / 255,) * 3)
    assert splits.std == pytest.approx((np.arange(32).std() / 255,) * 3)
    with pytest.raises(ValueError, match=r"\(N,\) whole numbers"):
        ArrayDataset.from_arrays(grey, [0.5, 1], grey, [0, 1])


def loader(augmentation: str, batch_size: int, **options: Any) -> InMemoryLoader:
    images = torch.full((40, 3, 8, 8), 200, dtype=torch.uint8)
    augment = Augment(own=augmentation, **options)
    return InMemoryLoader(images, torch.arange(40) % 4, batch_size=batch_size, mean=(0, 0, 0), std=(1, 1, 1),
                          augment=augment, shuffle=True, seed=3, num_classes=4)  # fmt: skip


def views(batches: InMemoryLoader) -> torch.Tensor:
    images = {index: view for batch in batches for index, view in zip(batch.index.tolist(), batch.images, strict=True)}
    return torch.stack([images[index] for index in sorted(images)])


def test_the_view_of_an_image_depends_on_image_and_epoch_only(files):
    batches = loader(files["augmentation"], 8)
    first = views(batches)
    assert len(first.mean((1, 2, 3)).unique()) > 30
    assert torch.equal(first, views(batches)) and torch.equal(first, views(loader(files["augmentation"], 7)))
    assert torch.equal(first, views(loader(files["augmentation"], 8, autoaugment=False)))
    batches.set_epoch(1)
    assert not torch.equal(first, views(batches))
    assert batches.view_count == 0  # no logits of a teacher are kept of such views


def test_code_that_draws_from_global_generators_repeats(files):
    edit(files["augmentation"], "random.uniform(1, 1, 1)", "__import__('numpy').random.rand(len(images), 1, 1, 1)")
    edit(files["augmentation"], "(images * brightness)", "(images * __import__('torch').from_numpy(brightness))")
    batches = loader(files["augmentation"], 8)
    first = views(batches)
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(first, views(batches)) and len(first.unique()) > 20
    assert not torch.equal(first, views(loader(files["augmentation"], 7)))


def test_random_draws_by_image():
    draws = Random(1, 2, [5, 9], torch.device("cpu"))
    uniform, normal, integers = draws.uniform(3), draws.normal(2, 2), draws.integers(4, 6)
    assert (len(draws), uniform.shape, normal.shape, integers.shape) == (2, (2, 3), (2, 2, 2), (2,))
    alone = Random(1, 2, [9], torch.device("cpu"))
    assert torch.equal(alone.uniform(3)[0], uniform[1]) and torch.equal(alone.normal(2, 2)[0], normal[1])
    assert set(integers.tolist()) <= {4, 5} and not torch.equal(uniform[0], uniform[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((".to(images.dtype)", ""), "should return (8, 3, 8, 8) torch.uint8, not (8, 3, 8, 8) torch.float32"),
        (("return (", "return 1; ("), "should return (8, 3, 8, 8) torch.uint8, not int"),
        (("random.uniform", "random.uniforms"), "failed: AttributeError"),
    ],
)
def test_invalid_augmentations(files, change, message):
    edit(files["augmentation"], *change)
    assert message in refusal(lambda: next(iter(loader(files["augmentation"], 8))))


@pytest.fixture
def package(files, tmp_path, monkeypatch):
    """An installed package that offers one of each, and others under names that are taken."""
    meta = tmp_path / "offering-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(
        "[kd_bench.models]\nnet_of_theirs = my_net:MyNet\nresnet18 = my_net:MyNet\ncifar_resnet8 = my_net:MyNet\n"
        "[kd_bench.datasets]\ndata_of_theirs = my_data:my_data\ndigits = my_data:my_data\n"
        "[kd_bench.augmentations]\naug_of_theirs = my_aug:my_aug\nlost = no_module:x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield files
    for name in ("my_net", "my_data", "my_aug"):
        sys.modules.pop(name, None)


def test_plug_ins_of_an_installed_package(package):
    plugin_names = {"method": package["method"], "model": "net_of_theirs", "dataset": "data_of_theirs",
                    "augmentation": "aug_of_theirs"}  # fmt: skip
    trial = plan(read_recipe(recipe(plugin_names)), "r")[2].trial
    assert (trial.model, trial.dataset.name, trial.augment.own) == ("net_of_theirs", "data_of_theirs", "aug_of_theirs")
    assert trial.model_source == models.source_hash("my_net.py:MyNet")
    assert "data_of_theirs" in datasets.names()
    assert models.offered_models()["net_of_theirs"] == "Three convolutions and a linear classifier."
    images = datasets.load(trial.dataset)
    assert build_network(trial, images)[0].__module__ == "my_net"
    assert len(next(iter(loaders(trial, images, torch.device("cpu"))[0])).images) == 64
    for name in ("resnet18", "cifar_resnet8"):
        assert models.resolve(name) and models.source_hash(models.resolve(name)) is None
    assert datasets.resolve(Dataset(name="digits")).source is None
    assert "there is no module 'no_module', which its entry" in refusal(plugins.find, plugins.AUGMENTATION, "lost")
    assert "did you mean 'net_of_theirs'?" in refusal(models.resolve, "net_of_their")


@pytest.mark.parametrize(
    ("given", "label", "name"),
    [
        ("kd", "kd", "kd"),
        ("./a/my.py:MyLoss", "my_loss", "./a/my.py:MyLoss"),
        ("my.py:KDLoss2", "kd_loss2", "my.py:KDLoss2"),
        ("x=dkd", "x", "dkd"),
        ("x-1=a=b/my.py:Mine", "x-1", "a=b/my.py:Mine"),
        ("/a=b/my.py:Mine", "mine", "/a=b/my.py:Mine"),
    ],
)
def test_rows_and_their_labels(given, label, name):
    assert api.method_rows([given], "--method") == {label: name}


@pytest.mark.parametrize("given", ["kd=", "", "a.b=kd", "my.py:", "my.py", "my loss.py"])
def test_invalid_rows(given):
    assert "should be a method's name, FILE.py:CLASS or LABEL=FILE.py:CLASS" in refusal(
        api.method_rows, [given], "--method"
    )


def test_rows_are_added_to_a_recipe(files):
    rows = [files["method"], f"two={files['method']}"]
    planned = api.plan("demo", methods=rows, only=["seed=0"], overrides=["methods.two.weight=3"]).planned
    assert [cell.label for cell in planned] == [*read_recipe("demo").methods, "my_loss", "two"]
    assert [cell.trial.method.hyperparameters for cell in planned[-2:]] == [{"weight": 1.0}, {"weight": 3.0}]
    assert "there is a row 'kd' already; give it another label: LABEL=my_loss.py:MyLoss" in refusal(
        api.with_rows, "demo", ["kd=my_loss.py:MyLoss"], None
    )
    assert "there is a row 'x' already" in refusal(api.method_rows, ["x=kd", "x=dkd"], "--method")
    assert "--methods kd: is named twice; leave one out" in refusal(api.method_rows, ["kd", "dkd", "kd"], "--methods")
    assert api.folder_name("compare", "./a b.py:x", "t") == "compare-.-a-b.py-x-t"


def test_the_report_has_the_command_of_an_added_row(files):
    Path("runs").mkdir()
    part = api.recipe_part("demo", Path("runs"), [f"my_own={files['method']}"])
    cell = next(cell for cell in part.cells if cell.label == "my_own")
    command = training_command(cell, part.recipe, part.methods)
    assert command.startswith("kd-bench run demo --method my_own=my_loss.py:MyLoss --only method=my_own ")
