"""The HTML report: one file made from a history, which needs neither network nor script."""
