"""Plugins: what they offer, their hooks, loading and checking."""
