"""gos_adapt/search."""
