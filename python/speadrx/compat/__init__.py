"""Modules that stand in for those of other packages, so that only an import line changes."""
