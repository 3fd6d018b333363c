"""Attacks within other distances than norms of the difference."""
