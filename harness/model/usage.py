"""What the user asked for and cannot have."""

from __future__ import annotations


class UsageError(Exception):
    """Something the user asked for does not exist or cannot be: one line that lists what does."""
