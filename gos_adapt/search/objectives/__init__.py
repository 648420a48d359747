"""gos_adapt/search/objectives."""
