"""The gated delta rule, token by token and in chunks."""

from opconform.cases.delta_net import chunked, recurrent

OPS = (recurrent.OP, chunked.OP)
