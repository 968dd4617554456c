"""The listeners: the authz listener that proxies ask, and the management listener."""
