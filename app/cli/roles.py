"""The roles a process may take, and how they are written on the command line."""

from app.errors import UserError

ROLES = ("producer", "worker", "coordinator", "api-gateway")


def parse_roles(text: str) -> tuple[str, ...]:
    """The roles of a comma-separated list, each once, in the order given."""
    roles = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [role for role in roles if role not in ROLES]
    if unknown or not roles:
        wrong = f"there is no role {', '.join(unknown)}" if unknown else "no role is named"
        raise UserError(f"--roles {text}: {wrong}; the roles are {', '.join(ROLES)}.")
    return roles
