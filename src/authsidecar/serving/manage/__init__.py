"""The management API on the management listener, and who may use it."""
