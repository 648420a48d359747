"""gos_adapt/cost."""
