"""Helpers that know nothing of distillation: errors, files, paths, seeding, processes, downloads, plug-ins."""
