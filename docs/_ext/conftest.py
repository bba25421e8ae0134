"""Keeps the documentation's own programs, which need Sphinx, out of the examples of pytest."""

collect_ignore_glob = ["pages/*.py"]
