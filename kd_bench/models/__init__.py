"""Networks for 32x32 images with timm's interface, and the outputs of any network with that interface.

Once this package and timm are imported, in any order, ``timm.create_model("cifar_resnet20")`` works. Importing this
package imports neither torch nor timm.
"""

from kd_bench.models.registration import register_with_timm
from kd_bench.models.registry import create, own_models, register, resolve

register_with_timm()

__all__ = ["create", "own_models", "register", "resolve"]
