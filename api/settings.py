"""Settings: read once from the environment, validated, frozen."""

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Annotated, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hub.budget.state import ANY_NUMBER, Quotas

AUTH_SECRET_BYTES_MIN = 32
API_KEY_LENGTH_MIN = 16

_API_KEY = re.compile(rf"[!-~]{{{API_KEY_LENGTH_MIN},}}")


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
    redis_cluster: Annotated[
        bool,
        Field(
            validate_default=True,
            description="`REDIS_URL` leads to a node of a Redis Cluster (Redis or Valkey 7 or newer"
            ": sharded pub/sub)",
        ),
    ] = False
    production: Annotated[
        bool, Field(description="Refuse what is for development only: Firebase's emulator")
    ] = False
    auth_mode: Annotated[
        Literal["local", "firebase"],
        Field(description="Who signs users in: `local` is the hub itself, or `firebase`"),
    ] = "local"
    auth_secret: Annotated[
        str,
        Field(
            description="Signs the local tokens, and keys the counts of rate limits; at least"
            f" {AUTH_SECRET_BYTES_MIN} bytes",
            repr=False,
        ),
    ]
    auth_secret_previous: Annotated[
        str | None,
        Field(
            description="What it signed counts too: the `AUTH_SECRET` before a change of it, or"
            " the one to come (see api/README.md)",
            repr=False,
        ),
    ] = None
    firebase_service_account_base64: Annotated[
        str | None,
        Field(
            description="The service account's JSON file in URL-safe base64; required with"
            " `AUTH_MODE=firebase` and no emulator",
            repr=False,
        ),
    ] = None
    firebase_project_id: Annotated[
        str | None,
        Field(
            pattern=r"^[a-z0-9][a-z0-9.:-]{0,127}$",
            description="Whose tokens count; absent: the project of the service account",
        ),
    ] = None
    firebase_auth_emulator_host: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9.\[\]:-]+:[0-9]{1,5}$",
            description="`host:port` of Firebase's emulator, which signs nothing: anybody can be"
            " anybody",
        ),
    ] = None
    revocation_check_s: Annotated[
        int,
        Field(
            ge=1,
            le=3600,
            description="Within how many seconds a user whom Firebase has disabled, deleted or"
            " signed out is gone here too",
        ),
    ] = 60
    origins: Annotated[
        str,
        Field(
            pattern=r"^(https?://[^\s,/]+(,https?://[^\s,/]+)*)?$",
            description="Web origins, comma-separated, whose pages may open sockets and call REST;"
            " absent: any may open sockets, none may call REST",
        ),
    ] = ""
    api_keys: Annotated[
        str,
        Field(
            description="What a client may send as `x-api-key`, comma-separated, each of at least"
            f" {API_KEY_LENGTH_MIN} characters; absent: no key is needed",
            repr=False,
        ),
    ] = ""
    trusted_proxies: Annotated[
        int,
        Field(
            ge=0,
            le=10,
            description="How many proxies of one's own a request passes: so many entries at the end"
            " of `X-Forwarded-For` are believed",
        ),
    ] = 0
    requests_per_min_user: Annotated[
        int,
        Field(
            ge=0,
            description="REST requests and new sockets of one user, on all nodes; 0: any number",
        ),
    ] = 1200
    requests_per_min_address: Annotated[
        int,
        Field(ge=0, description="REST requests and new sockets from one address; 0: any number"),
    ] = 6000
    connections_per_user: Annotated[
        int,
        Field(
            ge=0,
            description="Sockets, streams and waiting polls of one user, in this process; 0: any"
            " number",
        ),
    ] = 200
    connections_per_address: Annotated[
        int,
        Field(
            ge=0,
            description="Connections from one address to this process; behind `TRUSTED_PROXIES`,"
            " its sockets and the requests it waits for; 0: any number",
        ),
    ] = 2000
    logins_per_min_address: Annotated[
        int, Field(ge=0, description="Logins and registrations from one address; 0: any number")
    ] = 30
    logins_per_min_email: Annotated[
        int, Field(ge=0, description="Logins and registrations with one e-mail; 0: any number")
    ] = 10
    events_per_s_connection: Annotated[
        int,
        Field(ge=1, description="What one socket may send in the long run; ten seconds' at once"),
    ] = 500
    events_per_s_user: Annotated[
        int,
        Field(
            ge=1,
            description="What one user may send to this process, over all their sockets and"
            " `POST /events`",
        ),
    ] = 1000
    max_participants: Annotated[
        int, Field(ge=1, description="Of one budget, its owner included")
    ] = 10
    budgets_per_user: Annotated[
        int,
        Field(
            ge=0,
            description="In how many budgets one user may take part; ten times as many with those"
            " they left and those that were deleted; 0: any number",
        ),
    ] = 200
    records_per_budget: Annotated[
        int,
        Field(
            ge=0,
            description="Categories and expenses of one budget, deleted ones too; 0: any number",
        ),
    ] = 200_000
    log_mb_per_budget: Annotated[
        int,
        Field(
            ge=0,
            description="MiB of one budget's log; then it takes only what deletes; 0: any number",
        ),
    ] = 500
    s3_bucket: Annotated[
        str | None,
        Field(
            pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$",
            description="Where photos are kept; absent: in `PHOTO_DIR`",
        ),
    ] = None
    s3_region: Annotated[
        str | None,
        Field(
            pattern=r"^[a-z0-9-]{1,40}$",
            validate_default=True,
            description="Of the bucket; needed with it",
        ),
    ] = None
    s3_endpoint_url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^\s/?#@]+/?$",
            description="Of another service that speaks S3; absent: AWS",
        ),
    ] = None
    cdn_base_url: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^\s?#@]+$",
            validate_default=True,
            description="Where the bucket's `public/` is read; needed with it. Absent, photos are"
            " served under `/photos` by the hub itself",
        ),
    ] = None
    photo_dir: Annotated[
        str,
        Field(
            min_length=1,
            description="Folder of the photos without `S3_BUCKET`; all nodes have the same one",
        ),
    ] = ".data/photos"
    housekeeping_interval_s: Annotated[
        int,
        Field(
            ge=1,
            le=24 * 3600,
            description="How often what has had its time is deleted: invites, refresh tokens,"
            " uploads, what closed accounts left",
        ),
    ] = 600
    log_format: Annotated[
        Literal["json", "console"], Field(description="`json` for machines, `console` for people")
    ] = "json"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least severe log line")
    ] = "info"
    otel_exporter_otlp_endpoint: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^\s?#@]+$",
            description="Collector of traces (OTLP over HTTP); needs the extra `tracing`, takes the"
            " other `OTEL_` variables of OpenTelemetry too. Absent: no tracing",
        ),
    ] = None

    @field_validator("auth_secret", "auth_secret_previous")
    @classmethod
    def _long_enough(cls, secret: str | None) -> str | None:
        if secret is not None and len(secret.encode()) < AUTH_SECRET_BYTES_MIN:
            raise ValueError(f"must have at least {AUTH_SECRET_BYTES_MIN} bytes")
        return secret

    @field_validator("firebase_service_account_base64")
    @classmethod
    def _a_service_account(cls, encoded: str | None) -> str | None:
        if encoded is not None:
            _service_account(encoded)
        return encoded

    @model_validator(mode="after")
    def _identity_is_complete(self) -> "Settings":
        if self.production and self.firebase_auth_emulator_host is not None:
            raise ValueError(
                "FIREBASE_AUTH_EMULATOR_HOST: refused together with PRODUCTION: the emulator's"
                " tokens are not signed"
            )
        if self.auth_mode == "firebase":
            if (
                self.firebase_service_account_base64 is None
                and self.firebase_auth_emulator_host is None
            ):
                raise ValueError("FIREBASE_SERVICE_ACCOUNT_BASE64: is missing")
            if not self.firebase_project():
                raise ValueError("FIREBASE_PROJECT_ID: is missing")
        return self

    @field_validator("api_keys")
    @classmethod
    def _keys_of_some_length(cls, keys: str) -> str:
        if keys and not all(_API_KEY.fullmatch(key) for key in keys.split(",")):
            raise ValueError(
                f"each key has {API_KEY_LENGTH_MIN} or more printable ASCII characters, no space"
            )
        return keys

    @field_validator("redis_cluster")
    @classmethod
    def _with_an_address(cls, cluster: bool, info: ValidationInfo) -> bool:
        if cluster and "redis_url" in info.data:
            url = info.data["redis_url"]
            if url is None or url.startswith("unix:"):
                raise ValueError("needs a REDIS_URL that begins with redis:// or rediss://")
            if re.fullmatch(r"[^/]+//[^/?]*(/0?)?(\?.*)?", url) is None:
                raise ValueError("a cluster has no other database than 0, which REDIS_URL names")
        return cluster

    @field_validator("s3_region", "cdn_base_url")
    @classmethod
    def _with_the_bucket(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("s3_bucket") is not None:
            raise ValueError("is needed with S3_BUCKET")
        return value

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _tracing_is_installed(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not _installed("opentelemetry.exporter.otlp.proto.http"):
            raise ValueError("needs the extra: pip install 'budget-hub[tracing]'")
        return endpoint

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
            said = first["msg"].removeprefix("Value error, ")
            if not first["loc"]:  # of several settings together; begins with a name
                raise SettingsError(said) from None
            name = str(first["loc"][0]).upper()
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

    def quotas(self) -> Quotas:
        log_bytes = self.log_mb_per_budget * 1024 * 1024
        limits = self.budgets_per_user, self.records_per_budget, log_bytes
        return Quotas(*(limit or ANY_NUMBER for limit in limits))

    def auth_secrets(self) -> list[bytes]:
        """The first one signs, all of them verify."""
        secrets = (self.auth_secret, self.auth_secret_previous)
        return [secret.encode() for secret in secrets if secret is not None]

    def firebase_service_account(self) -> dict[str, str] | None:
        encoded = self.firebase_service_account_base64
        return None if encoded is None else _service_account(encoded)

    def firebase_project(self) -> str:
        """The project whose tokens count; nothing where none is set."""
        return self.firebase_project_id or (self.firebase_service_account() or {}).get(
            "project_id", ""
        )

    def origin_list(self) -> list[str]:
        return [origin for origin in self.origins.split(",") if origin]

    def api_key_list(self) -> list[str]:
        return [key for key in self.api_keys.split(",") if key]

    def to_env(self) -> dict[str, str]:
        """The environment from which `from_env` makes these settings again."""
        return {
            name.upper(): str(value)
            for name, value in self.model_dump().items()
            if value is not None
        }


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def _service_account(encoded: str) -> dict[str, str]:
    """Raises `ValueError`, which never quotes it: a private key is in it."""
    try:
        text = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        account = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON in URL-safe base64") from None
    wanted = ("project_id", "client_email", "private_key", "token_uri")
    if not isinstance(account, dict) or account.get("type") != "service_account":
        raise ValueError("is not the JSON file of a service account")
    for name in wanted:
        if not isinstance(account.get(name), str) or not account[name]:
            raise ValueError(f"has no {name}")
    try:
        load_pem_private_key(account["private_key"].encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("has no private_key that can be read") from None
    return account
