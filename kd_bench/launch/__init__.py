"""Runs the missing trials of a recipe: the scheduler, its workers, and the executors that start them."""
