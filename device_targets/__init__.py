"""device_targets."""
