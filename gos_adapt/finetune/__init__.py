"""gos_adapt/finetune."""
