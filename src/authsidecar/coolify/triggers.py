"""Instant mode: triggers in Coolify's database that notify of changes that matter.

They are made so that they can never stand in Coolify's way: the function swallows its own errors,
names no column in a way that a migration could trip over, and a transaction that changes many
rows notifies once.
"""

from collections.abc import Mapping
from typing import Any, Final

from authsidecar.coolify.source import CHANNEL, CONNECT_S, UNREADABLE, SourceError, driver, one_line

MATTERS: Final[Mapping[str, tuple[str, ...]]] = {
    "personal_access_tokens": (
        *("id", "tokenable_type", "tokenable_id", "name", "token", "team_id", "abilities"),
        "expires_at",
    ),
    "users": ("id", "name", "email"),
    "teams": ("id", "name", "is_mcp_server_enabled"),
    "team_user": ("team_id", "user_id", "role"),
    "instance_settings": ("id", "is_api_enabled", "allowed_ips", "is_mcp_server_enabled"),
}
"""The columns whose change is told; last_used_at and updated_at move with every request."""

# The columns are arguments, compared as JSON: a trigger that named them itself would keep a
# migration from dropping or altering one.
_FUNCTION: Final = f"""
CREATE OR REPLACE FUNCTION {CHANNEL}() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog AS $function$
DECLARE
  before jsonb;
  after jsonb;
  name text;
BEGIN
  IF TG_LEVEL = 'STATEMENT' THEN
    PERFORM pg_notify('{CHANNEL}', '');
    RETURN NULL;
  END IF;
  before := to_jsonb(OLD);
  after := to_jsonb(NEW);
  FOREACH name IN ARRAY TG_ARGV LOOP
    IF before -> name IS DISTINCT FROM after -> name THEN
      PERFORM pg_notify('{CHANNEL}', '');
      EXIT;
    END IF;
  END LOOP;
  RETURN NULL;
EXCEPTION WHEN OTHERS THEN
  RETURN NULL;
END
$function$
"""


def installing() -> tuple[str, ...]:
    """The statements that install the triggers, again or for the first time."""
    statements = [*removing(), _FUNCTION]
    for table, columns in MATTERS.items():
        names = ", ".join(f"'{column}'" for column in columns)
        statements.append(
            f"CREATE TRIGGER {CHANNEL}_rows AFTER UPDATE ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION {CHANNEL}({names})"
        )
        statements.append(
            f"CREATE TRIGGER {CHANNEL} AFTER INSERT OR DELETE OR TRUNCATE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {CHANNEL}()"
        )
    return tuple(statements)


def removing() -> tuple[str, ...]:
    """The statements that remove all that `installing` made, if it is there."""
    # CASCADE reaches the function's own triggers and nothing else.
    return (f"DROP FUNCTION IF EXISTS {CHANNEL}() CASCADE",)


async def run(dsn: str, statements: tuple[str, ...]) -> None:
    """Run statements in one transaction.

    Raises:
        SourceError: the database does not answer, or does not allow it.
    """
    library = driver()
    try:
        connection: Any = await library.connect(dsn, timeout=CONNECT_S, command_timeout=CONNECT_S)
        try:
            async with connection.transaction():
                for statement in statements:
                    await connection.execute(statement)
        finally:
            await connection.close(timeout=CONNECT_S)
    except (ValueError, LookupError):  # its text may hold a piece of the password
        raise SourceError(UNREADABLE) from None
    except (library.PostgresError, library.InterfaceError, OSError, TimeoutError) as error:
        raise SourceError(one_line(error)) from None
