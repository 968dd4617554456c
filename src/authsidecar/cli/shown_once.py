"""What is shown once: the secret of a new token or key, and what is said of its expiry."""

from collections.abc import Awaitable, Callable, Mapping

from authsidecar.cli.errors import OutputError, RefusedError
from authsidecar.cli.session import Session
from authsidecar.cli.streams import keep
from authsidecar.times import UnixMs, for_people


async def show_once(
    session: Session,
    noun: str,
    data: Mapping[str, object],
    plain: str,
    *,
    expires_at: UnixMs | None,
    remove: Callable[[], Awaitable[object]],
) -> None:
    """Show what was just made; if it can't be shown, it is taken back.

    Args:
        session: where it is shown.
        noun: "token" or "key".
        data: for --json: `id`, then what else is told; the secret stands behind the id.
        plain: the secret.
        expires_at: until when it is valid, or None: it does not expire.
        remove: takes it back.

    Raises:
        RefusedError: it was not shown; says whether it was taken back.
    """
    from redis.exceptions import RedisError

    number = data["id"]
    shown = {"id": number, noun: plain, **data}
    try:
        session.out.result(shown, plain, quiet=plain)
        keep()
    except OutputError as error:
        try:
            await remove()
            await session.until_replicated()
        except (RedisError, OSError):
            raise RefusedError(
                f"{error}; {noun} {number} was made, is shown to nobody and could not be taken "
                f"back: `authsidecar {noun} revoke {number}`"
            ) from None
        raise RefusedError(f"{error}; the new {noun} was taken back") from None
    when = "It never expires" if expires_at is None else f"It expires {for_people(expires_at)}"
    session.out.note(f"Store it now: it is not shown again. {when}.")


def expiry(expires_at: UnixMs | None, now: UnixMs) -> str:
    """Until when something is valid, for people."""
    if expires_at is None:
        return "never"
    return for_people(expires_at) + (" (expired)" if now > expires_at else "")
