"""gos_adapt/report."""
