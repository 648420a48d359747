"""The operator: a graph of instructions, its canonical form, its meaning, and how it is written down."""
