"""What decisions depend on, from the settings."""

from pathlib import Path

from authsidecar.config import Settings
from authsidecar.decision.authorize import Rules
from authsidecar.decision.model import TeamId
from authsidecar.decision.policy import Policy
from authsidecar.decision.routes import RouteError, RouteTable, coolify, extra
from authsidecar.run.errors import StartError


def extra_routes(settings: Settings) -> str | None:
    """The text of the operator's own routes, if there is such a file.

    Raises:
        StartError: it cannot be read.
    """
    path = settings.coolify.extra_routes
    try:
        return None if path is None else Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"coolify.extra_routes: cannot read {path}: {error}") from None


def routes(settings: Settings, text: str | None = None) -> RouteTable:
    """The route table that the settings choose.

    Args:
        settings: the configuration.
        text: that of the operator's own routes; None: it is read, if there is such a file.

    Raises:
        StartError: the operator's own rows cannot be used.
    """
    table = coolify(settings.coolify.routes)
    if text is None and (text := extra_routes(settings)) is None:
        return table
    try:
        return extra(text, table)
    except RouteError as error:
        path = settings.coolify.extra_routes
        raise StartError(f"coolify.extra_routes: {path}: {error}") from None


def rules(settings: Settings, text: str | None = None) -> Rules:
    """What decisions depend on, from the settings.

    Args:
        settings: the configuration.
        text: that of the operator's own routes; None: it is read, if there is such a file.

    Raises:
        StartError: the operator's own routes cannot be used.
    """
    return Rules(
        policy=Policy(
            routes=routes(settings, text),
            pass_outside=settings.coolify.outside == "pass",
            instance_team=TeamId(settings.coolify.instance_team),
            team_isolation=settings.sync.team_isolation,
        ),
        limits=settings.limits.as_limits(),
        ipv6_prefix=settings.limits.ipv6_prefix,
        public_without_store=settings.redis.public_without_redis,
        forwarded_bodies=settings.restrictions.body == "forwarded",
    )
