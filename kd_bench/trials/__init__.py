"""A trial's folder under OUT: what is written to it, who holds it, and whether it is intact."""
