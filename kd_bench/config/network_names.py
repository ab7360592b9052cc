"""The names of the suite's own networks."""

#: Prefix of the names of our networks, so that they never hide one of timm's.
PREFIX = "cifar_"


def short_name(network: str) -> str:
    """Returns a network's name without the prefix of ours: ``resnet8x4`` for ``cifar_resnet8x4``."""
    return network.removeprefix(PREFIX)
