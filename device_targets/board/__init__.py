"""What runs on a board: a server of TVM's RPC in C, and how to build it."""
