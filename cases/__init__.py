"""One module per op: its arguments, its strategy, its float64 reference and its error bound."""
