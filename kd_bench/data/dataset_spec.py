"""Description of a data set that is known without reading its files."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Description of a data set. None stands for what only the files say.

    The defaults are those of any set of colour images: ImageNet's mean and std, as torchvision has them.
    """

    name: str
    title: str
    num_classes: int | None = None
    """For the default kind of label."""
    image_size: int
    """Height and width in pixels; the default if ``options`` has size."""
    channels: int = 3
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the channels, for images scaled to 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of the channels, for images scaled to 0..1."""
    crop: int
    """Default and largest padding of the random crop, in pixels, for images of ``image_size``; scales with the size."""
    flip: bool = True
    """Whether a mirrored image keeps its label."""
    labels: tuple[str, ...] = ()
    """Kinds of label to choose from, the default first; empty if there is one kind only."""
    train_size: int | None = None
    test_size: int | None = None
    source: str
    """Citation, and where to get the set."""
    label_classes: tuple[int, ...] = ()
    """Number of classes of each of ``labels``."""
    options: tuple[str, ...] = ()
    """Settings besides the number of classes: ``path`` (required), ``size`` and ``labels``."""
    sizes: tuple[int, ...] = ()
    """Allowed sizes; empty if ``size`` is no option, or may be anything."""
    downloadable: bool = False
    """Whether ``registry.download`` can get the set."""
    streams: bool = False
    """Whether a recipe's ``pipeline`` can decode the images when they are needed."""
    full_size: tuple[int, int, int] | None = field(default=None, repr=False)
    """Classes, training images and test images of the complete set, if the fields above leave them to the files."""
    digests: tuple[str, ...] = field(default=(), repr=False)
    """``ImageRecord.digest`` of the complete set at ``image_size``, for each of ``labels`` if there are several kinds;
    empty if it is not known."""
    hub: tuple[str, str] | None = field(default=None, repr=False)
    """Id on the Hugging Face hub and name of the test split, for model cards."""

    @property
    def counts(self) -> tuple[int, int] | None:
        """Numbers of training and test images of the complete set; None if any images may have this name."""
        if self.full_size is not None:
            return self.full_size[1:]
        return None if self.train_size is None or self.test_size is None else (self.train_size, self.test_size)

    @property
    def summary(self) -> str:
        """One line for people."""
        if self.num_classes is None or self.train_size is None or self.test_size is None:
            return f"{self.title}: any number of classes and images, by default of {self.image_size} pixels"
        return (
            f"{self.title}: {self.num_classes} classes, {self.train_size:,} training and {self.test_size:,} test images"
        )
