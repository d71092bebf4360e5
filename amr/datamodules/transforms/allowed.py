"""Allowed values of a transform's options."""

from amr.utils.errors import UserError


def require_option(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raises UserError, naming the option, its value and what is allowed, unless it is `ok`."""
    if not ok:
        raise UserError(f"{key}={value}: must be {allowed}")
