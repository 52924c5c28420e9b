"""What a backend class offers whose library's own tools take cases as lines of text: the seam between them and files.

A class says what it can by `Backend.lines`.
"""

from __future__ import annotations

from typing import Protocol

from opconform.harness.model.case import Case, CaseError


class NotALineError(CaseError):
    """Text that is no such line at all."""


class Lines(Protocol):
    """Reads and writes lines."""

    @property
    def about(self) -> str:
        """Whose tools take such lines, with the build, in a few words."""

    @property
    def form(self) -> str:
        """How a line looks."""

    def read(self, text: str) -> tuple[str, Case]:
        """The name that stands in a line ("" for none), and the case, with layouts and parameters as the line has them;
        no op has checked it yet. Raises `NotALineError`, and `CaseError` for a line that can be no case."""

    def write(self, case: Case, name: str) -> str:
        """The line of a case, without its end. Raises `CaseError` where a line has no room for something."""
