"""gos_adapt/operators."""
