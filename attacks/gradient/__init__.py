"""Attacks that climb along the gradient of the expected loss."""
