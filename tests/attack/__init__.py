"""Attacks: backends that do what no backend should, and files from strangers."""
