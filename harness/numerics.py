"""What arithmetic a device promises, as far as error bounds depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Count = TypeVar("Count", float, npt.NDArray[np.float64])


@dataclass(frozen=True)
class Numerics:
    """A device's promises about float32 arithmetic.

    flushes_denormals: results and operands below 2^-126 may become 0 (Vulkan without DenormPreserve, OpenCL without
    CL_FP_DENORM). any_rounding: a correctly rounded result may be either neighbour (Vulkan promises no rounding mode
    without RoundingModeRTE). division_ulps: the error of a division in units in the last place (2.5 in the Vulkan
    and OpenCL specifications, 0.5 where it is correctly rounded). roundoff: the unit roundoff of an operation in the
    compute precision, before `any_rounding`.
    """

    flushes_denormals: bool = False
    any_rounding: bool = False
    division_ulps: float = 0.5
    roundoff: float = 2.0**-24

    @property
    def u(self) -> float:
        """The relative error bound of one operation."""
        return 2 * self.roundoff if self.any_rounding else self.roundoff

    @property
    def underflow(self) -> float:
        """The absolute error one operation can make by underflow: flushed to 0, or rounded to a denormal."""
        return 2.0**-126 if self.flushes_denormals else 2.0**-150

    def gamma(self, n: Count) -> Count:
        """γ_n = n·u / (1 − n·u), the relative error of n roundings (Higham 2002, lemma 3.1)."""
        return n * self.u / (1 - n * self.u)


EXACT = Numerics()
