"""Families of ops: what an op of a kind shares with its kin, so that the op itself is one row of a table.

elementwise: a formula of each element, of one argument or of several that are repeated over the first.
row_op: a formula of a row, which may have sums, means and maxima along the row in it.
gather: each element of the output is one of the argument's, or a zero.

A row says what the op computes. The family has its problems, checks and hints, and the bound that follows from what
the row says.
"""

from opconform.cases.families.choices import choice
from opconform.cases.families.formulas import elementwise, row_op
from opconform.cases.families.gathers import gather

__all__ = ["choice", "elementwise", "gather", "row_op"]
