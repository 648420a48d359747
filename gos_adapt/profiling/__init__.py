"""gos_adapt/profiling."""
