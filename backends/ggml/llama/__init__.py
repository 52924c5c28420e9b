"""A model running in libllama, watched node by node."""
