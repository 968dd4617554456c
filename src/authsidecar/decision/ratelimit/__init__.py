"""Rate limits: which counters a request costs, and the algorithm that counts."""
