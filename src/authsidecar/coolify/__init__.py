"""Coolify's PostgreSQL, followed into Redis (docs/how-to/coolify.md)."""
