"""Bundles that show a failure to whoever can mend it: a script, a C++ test case, an issue, a picture."""
