"""What decisions depend on, from the settings."""

from pathlib import Path

from authsidecar.config import Settings
from authsidecar.decision.authorize import Rules
from authsidecar.decision.model import TeamId
from authsidecar.decision.policy import Policy
from authsidecar.decision.routes import RouteError, RouteTable, coolify, extra
from authsidecar.run.errors import StartError


def routes(settings: Settings) -> RouteTable:
    """The route table that the settings choose.

    Raises:
        StartError: the operator's own rows cannot be used.
    """
    table = coolify(settings.coolify.routes)
    path = settings.coolify.extra_routes
    if path is None:
        return table
    try:
        return extra(Path(path).read_text("utf-8"), table)
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"coolify.extra_routes: cannot read {path}: {error}") from None
    except RouteError as error:
        raise StartError(f"coolify.extra_routes: {path}: {error}") from None


def rules(settings: Settings) -> Rules:
    """What decisions depend on, from the settings.

    Raises:
        StartError: the operator's own routes cannot be used.
    """
    return Rules(
        policy=Policy(
            routes=routes(settings),
            pass_outside=settings.coolify.outside == "pass",
            instance_team=TeamId(settings.coolify.instance_team),
            team_isolation=settings.sync.team_isolation,
        ),
        limits=settings.limits.as_limits(),
        ipv6_prefix=settings.limits.ipv6_prefix,
        public_without_store=settings.redis.public_without_redis,
    )
