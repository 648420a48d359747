"""tvm_passes/schedules."""
