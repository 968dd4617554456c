"""Which permission a route needs: one table per Coolify release line, first match in order wins.

The tables are data (`coolify-4.x.tsv`, the columns of Coolify's own middleware); what
docs/explanation/deviations.md says of named routes wins over their columns. No row, no access.
"""

from authsidecar.decision.routes.loading import MCP_PATH, RELEASES, RouteError, coolify, extra
from authsidecar.decision.routes.table import (
    FRONT_CONTROLLER,
    ROUTE_UNKNOWN,
    Guard,
    Route,
    RouteTable,
)

__all__ = [
    "FRONT_CONTROLLER",
    "MCP_PATH",
    "RELEASES",
    "ROUTE_UNKNOWN",
    "Guard",
    "Route",
    "RouteError",
    "RouteTable",
    "coolify",
    "extra",
]
