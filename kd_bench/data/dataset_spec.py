"""What is known of every data set without reading it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a data set before it is read; None where only reading it tells."""

    name: str
    title: str
    num_classes: int | None
    """Of the default label kind."""
    image_size: int
    """Height and width in pixels; where ``takes`` has size, the one that is taken if none is chosen."""
    channels: int
    mean: tuple[float, float, float]
    """Of the channels, for images scaled to 0..1."""
    std: tuple[float, float, float]
    """Of the channels, for images scaled to 0..1."""
    crop: int
    """Padding, in pixels, of the random crop that the set's recipes use and allow at most; 0 where none is allowed.

    For images of ``image_size``; it grows and shrinks with them."""
    flip: bool
    """Whether a mirrored image keeps its label; taken for granted of images that are the user's own."""
    labels: tuple[str, ...]
    """The kinds of label to choose from, the first being the default; empty where there is no choice."""
    train_size: int | None
    test_size: int | None
    source: str
    """Citation, and where to get it."""
    label_classes: tuple[int, ...] = ()
    """Number of classes of each of ``labels``."""
    takes: tuple[str, ...] = ()
    """What can be chosen besides the number of classes: of ``path`` (which must be given), ``size`` and ``labels``."""
    sizes: tuple[int, ...] = ()
    """The sizes to choose from; empty where there is no choice, or any will do."""
    fetched: bool = False
    """Whether ``registry.download`` can get it."""
    streams: bool = False
    """Whether its images can be decoded when they are needed, which a recipe's ``pipeline`` asks for."""

    @property
    def summary(self) -> str:
        """One line for people."""
        if self.num_classes is None or self.train_size is None or self.test_size is None:
            return f"{self.title}: as many classes and images as are there, at {self.image_size} or other pixels"
        return (
            f"{self.title}: {self.num_classes} classes, {self.train_size:,} training and {self.test_size:,} test images"
        )


def own(name: str, title: str, image_size: int, source: str) -> DatasetSpec:
    """What is known of a set of the user's own, which is as little as of a folder of images.

    Args:
        name: As recipes name it.
        title: For people.
        image_size: Height and width where no other is chosen.
        source: Where it comes from.
    """
    return DatasetSpec(
        name=name,
        title=title,
        num_classes=None,
        image_size=image_size,
        channels=3,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        crop=image_size // 8,
        flip=True,
        labels=(),
        train_size=None,
        test_size=None,
        source=source,
        takes=("size",),
    )


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Mean and std are those that the published teachers were trained with. CIFAR's are of all pixels of all training images
# (for CIFAR-10 one also meets 0.2023 0.1994 0.2010, the mean of the images' own standard deviations), CIFAR-100's off
# the exact ones in the fourth digit. Tiny-ImageNet's std, as the literature on distillation has it, is such a mean of
# the images' own; that of all pixels is 0.2770 0.2691 0.2821. The digits' are those of their 200 training images.
# ImageNet's are torchvision's, and serve for all images that nobody has measured.
SPECS = (
    DatasetSpec(
        name="cifar10",
        title="CIFAR-10",
        num_classes=10,
        image_size=32,
        channels=3,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        crop=4,
        flip=True,
        labels=(),
        train_size=50_000,
        test_size=10_000,
        source="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; "
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        fetched=True,
    ),
    DatasetSpec(
        name="cifar100",
        title="CIFAR-100",
        num_classes=100,
        image_size=32,
        channels=3,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
        crop=4,
        flip=True,
        labels=("fine", "coarse"),
        label_classes=(100, 20),
        train_size=50_000,
        test_size=10_000,
        source="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; "
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        takes=("labels",),
        fetched=True,
    ),
    DatasetSpec(
        name="digits",
        title="Handwritten digits of scikit-learn",
        num_classes=10,
        image_size=32,
        channels=3,
        mean=(0.3048, 0.3048, 0.3048),
        std=(0.3752, 0.3752, 0.3752),
        crop=2,
        flip=False,
        labels=(),
        train_size=200,
        test_size=1_597,
        source="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part); "
        "comes with scikit-learn",
    ),
    DatasetSpec(
        name="folder",
        title="Folder of images",
        num_classes=None,
        image_size=224,
        channels=3,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        crop=28,
        flip=True,
        labels=(),
        train_size=None,
        test_size=None,
        source="the folder named by path, with a folder of images a class in train and in test, val, valid or "
        "validation, or with shards of a WebDataset, train-000000.tar and val-000000.tar",
        takes=("path", "size"),
        streams=True,
    ),
    DatasetSpec(
        name="imagenet",
        title="ImageNet (ILSVRC 2012)",
        num_classes=None,
        image_size=224,
        channels=3,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        crop=28,
        flip=True,
        labels=(),
        train_size=None,
        test_size=None,
        source="O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015; "
        "https://image-net.org/challenges/LSVRC/2012/",
        takes=("size",),
        streams=True,
    ),
    DatasetSpec(
        name="parquet",
        title="Parquet files of images",
        num_classes=None,
        image_size=224,
        channels=3,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        crop=28,
        flip=True,
        labels=(),
        train_size=None,
        test_size=None,
        source="the folder named by path, with train*.parquet and test*.parquet or val*.parquet, of encoded images in "
        "a column img or image and labels in a column label, labels or fine_label, or the one named by labels",
        takes=("path", "size", "labels"),
    ),
    DatasetSpec(
        name="tiny_imagenet",
        title="Tiny-ImageNet",
        num_classes=200,
        image_size=64,
        channels=3,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2302, 0.2265, 0.2262),
        crop=8,
        flip=True,
        labels=(),
        train_size=100_000,
        test_size=10_000,
        source="Y. Le and X. Yang, Tiny ImageNet Visual Recognition Challenge, Stanford CS 231N, 2015; "
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        takes=("size",),
        sizes=(32, 64),
        fetched=True,
    ),
)
