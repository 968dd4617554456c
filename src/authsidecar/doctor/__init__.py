"""The proxy doctor: probes sent through the operator's own proxy, and what became of them."""
