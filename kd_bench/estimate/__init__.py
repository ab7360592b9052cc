"""Estimates how long a recipe takes: by timing a few steps here, and by counting operations for named GPUs."""
