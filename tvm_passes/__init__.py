"""tvm_passes."""
