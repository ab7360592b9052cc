"""Evaluates trained networks: accuracy, calibration, fidelity to the teacher, efficiency, and robustness."""
