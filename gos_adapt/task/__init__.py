"""gos_adapt/task."""
