"""Where cases come from: drawn problems, their variants, and cases kept in files."""
