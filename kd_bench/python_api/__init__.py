"""What scripts and notebooks call: comparisons, their results, and a method in a training loop of one's own."""
