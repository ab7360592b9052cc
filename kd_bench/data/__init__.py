"""Data sets and loaders. Importing ``registry`` loads neither torch nor NumPy."""
