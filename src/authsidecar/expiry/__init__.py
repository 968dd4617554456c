"""Warnings before a token expires, by mail and webhook (docs/how-to/expiry-warnings.md)."""
