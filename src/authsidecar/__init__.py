"""authsidecar: an authorization sidecar that guards Coolify's API at the reverse proxy."""

__version__ = "0.2.0"
