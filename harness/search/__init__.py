"""Hypothesis at work: the search of one op on one device, and a session of many."""
