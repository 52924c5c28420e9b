"""Hostile data: every reader gives one clear line, and harms nothing."""
