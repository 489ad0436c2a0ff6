"""Settings: read once from the environment, validated, frozen."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

AUTH_SECRET_BYTES_MIN = 32


class SettingsError(Exception):
    """A setting is missing or wrong; the message is one line that begins with its name."""


class Settings(BaseModel):
    """One field a setting; its name in upper case is the environment variable."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    host: Annotated[str, Field(min_length=1, description="Address to listen on")] = "127.0.0.1"
    port: Annotated[
        int, Field(ge=0, le=65535, description="Port to listen on; 0 lets the system choose")
    ] = 8000
    web_concurrency: Annotated[
        int, Field(ge=1, le=64, description="Worker processes on the one port")
    ] = 1
    database_url: Annotated[
        str, Field(pattern=r"^postgres(ql)?://", description="Postgres 15 or newer", repr=False)
    ]
    redis_url: Annotated[
        str | None,
        Field(
            pattern=r"^(redis|rediss|unix)://",
            description="Redis 6.2 or Valkey; absent: a single node, still correct",
            repr=False,
        ),
    ] = None
    auth_mode: Annotated[
        Literal["local"], Field(description="Who signs users in: `local` is the hub itself")
    ] = "local"
    auth_secret: Annotated[
        str,
        Field(
            description=f"Signs the local tokens; at least {AUTH_SECRET_BYTES_MIN} bytes",
            repr=False,
        ),
    ]
    origins: Annotated[
        str,
        Field(
            pattern=r"^(https?://[^\s,/]+(,https?://[^\s,/]+)*)?$",
            description="Web origins that may open sockets, comma-separated; absent: any",
        ),
    ] = ""
    events_per_s_connection: Annotated[
        int,
        Field(ge=1, description="What one socket may send in the long run; ten seconds' at once"),
    ] = 500
    events_per_s_user: Annotated[
        int,
        Field(ge=1, description="What one user may send to this process over all his sockets"),
    ] = 1000
    max_participants: Annotated[
        int, Field(ge=1, description="Of one budget, its owner included")
    ] = 10
    log_format: Annotated[
        Literal["json", "console"], Field(description="`json` for machines, `console` for people")
    ] = "json"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least severe log line")
    ] = "info"

    @field_validator("auth_secret")
    @classmethod
    def _long_enough(cls, secret: str) -> str:
        if len(secret.encode()) < AUTH_SECRET_BYTES_MIN:
            raise ValueError(f"must have at least {AUTH_SECRET_BYTES_MIN} bytes")
        return secret

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Raises `SettingsError`. An empty variable counts as absent."""
        given = {
            name: environ[name.upper()]
            for name in cls.model_fields
            if environ.get(name.upper(), "") != ""
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]).upper()
            said = first["msg"].removeprefix("Value error, ")
            problem = "is missing" if first["type"] == "missing" else said
            raise SettingsError(f"{name}: {problem}") from None

    @classmethod
    def table(cls) -> str:
        """All settings as a Markdown table, as README.md shows them."""
        lines = ["| setting | default | meaning |", "|---|---|---|"]
        for name, field in cls.model_fields.items():
            default = "**required**" if field.is_required() else f"`{field.default}`"
            if field.default in (None, ""):
                default = "absent"
            lines.append(f"| `{name.upper()}` | {default} | {field.description} |")
        return "\n".join(lines) + "\n"

    def origin_list(self) -> list[str]:
        return [origin for origin in self.origins.split(",") if origin]

    def to_env(self) -> dict[str, str]:
        """The environment from which `from_env` makes these settings again."""
        return {
            name.upper(): str(value)
            for name, value in self.model_dump().items()
            if value is not None
        }
