"""Networks for 32x32 images behind timm's interface, and what any network of timm's puts out.

``kd_bench.models.register()`` makes them known to ``timm.create_model``; ``registry`` is the light way in.
"""

from kd_bench.models.registry import create, own_models, register, resolve

__all__ = ["create", "own_models", "register", "resolve"]
