"""Two sidecars, all that they stand on, and everything that can go wrong with it."""
