"""The plugin edge: what a plugin offers, the hooks, loading and checking."""
