"""Adversarial images: how they are made, and how well a network stands against them."""
