"""The engine: cases, layouts, buffers, the oracle, checks, workers, search. It knows no op or backend by name."""
