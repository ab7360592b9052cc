"""Networks for 32x32 images with timm's interface, and the outputs of any network with that interface.

``kd_bench.models.register()`` registers our networks with timm. Importing this package imports neither torch nor timm.
"""

from kd_bench.models.registry import create, own_models, register, resolve

__all__ = ["create", "own_models", "register", "resolve"]
