"""The engine: cases, layouts, buffers, the oracle, checks, workers and search. It knows no op and no backend by name."""
