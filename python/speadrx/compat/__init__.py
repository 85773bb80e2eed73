"""Modules that replace modules of other packages, so that only an import line has to change."""
