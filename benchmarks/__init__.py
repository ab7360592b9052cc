"""Speed and memory, each measured beside what it is claimed to beat."""
