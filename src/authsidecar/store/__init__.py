"""Redis, the only shared state (docs/reference/redis-keys.md lists every key)."""
