"""Attacks that need answers only."""
