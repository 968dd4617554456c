"""One request's verdict, from facts alone: no network, no clock, no library but Python's own.

`authorize.authorize` is the one way to a verdict; the rest of the package is what it is made of.
"""

from authsidecar.decision.authorize import Outcome, Rules, Store, StoreError
from authsidecar.decision.model import AccessRequest, Allow, Deny, Kind, Proxy, Reason, Verdict
from authsidecar.decision.policy import Policy

__all__ = [
    "AccessRequest",
    "Allow",
    "Deny",
    "Kind",
    "Outcome",
    "Policy",
    "Proxy",
    "Reason",
    "Rules",
    "Store",
    "StoreError",
    "Verdict",
]
