"""What the reverse proxies say and expect: one module per protocol, and what they share."""
