"""gos_adapt/model."""
