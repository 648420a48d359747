"""gos_adapt."""
