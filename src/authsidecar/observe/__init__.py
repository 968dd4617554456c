"""What an operator sees of a running sidecar: log, metrics, and background work that fails."""
