"""The names of the suite's own networks."""

#: Prefix of the names of our networks, so that they never hide one of timm's.
PREFIX = "cifar_"
