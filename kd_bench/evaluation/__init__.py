"""Evaluates trained networks: accuracy of a teacher, and accuracy under adversarial attacks."""
