"""kd-bench: the benchmark suite for knowledge distillation.

The command ``kd-bench`` is the usual way in. From Python: ``kd_bench.losses`` holds the losses as functions of tensors,
``kd_bench.methods.base.Method`` is what a method of one's own derives from, and ``kd_bench.models.registry.register``
makes timm know the networks for small images. Nothing heavy is imported before one of them is.
"""

__version__ = "0.1.0"
