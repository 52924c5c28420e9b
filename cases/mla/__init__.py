"""Multi-head latent attention: the op, its reference, what is tried, and what a wrong kernel would return."""

from opconform.cases.mla import absorbed

OPS = (absorbed.OP,)
