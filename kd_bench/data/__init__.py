"""Data sets, one file a source, and the in-memory loader. ``registry`` is the light way in."""
