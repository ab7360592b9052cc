"""Tunes methods under an equal budget, by the accuracy on held-out training images."""
