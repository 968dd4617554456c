"""The seam between proxy, sidecar and backend: odd requests, and what may come of them."""
