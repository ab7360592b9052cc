"""Augmentations: of a whole batch on the device, and of one image at a time by timm."""
