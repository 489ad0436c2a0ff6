"""Google, as far as Firebase's Admin SDK speaks with it: keys, access tokens and account look-ups.

It signs ID tokens as Firebase does, with certificates it made itself. The SDK is the real one; only
the addresses it asks are exchanged (`answering`, and `tests/firebase_hub.py` for a process).
"""

import base64
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from firebase_admin import _token_gen, _user_mgt
from google.oauth2 import service_account

PROJECT = "demo-budget-hub"
FIREBASE_HUB = (sys.executable, "-m", "tests.firebase_hub")  # stands for `budget-hub`
ISSUER = f"https://securetoken.google.com/{PROJECT}"
_ANSWER_S = 5.0


class Signer(NamedTuple):
    """A key and its certificate, which says nothing but whose key it is."""

    kid: str
    key: rsa.RSAPrivateKey
    certificate: str

    @classmethod
    def made(cls, kid: str) -> Self:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "securetoken")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .sign(key, hashes.SHA256())
        )
        return cls(kid, key, certificate.public_bytes(serialization.Encoding.PEM).decode())

    def token(self, user_id: str, **changed: object) -> str:
        """A token as Firebase issues it now, but for what the arguments change; None leaves a claim
        out."""
        now_s = int(time.time())
        claims: dict[str, object] = {
            "iss": ISSUER,
            "aud": PROJECT,
            "sub": user_id,
            "user_id": user_id,
            "iat": now_s,
            "auth_time": now_s,
            "exp": now_s + 3600,
            "firebase": {"identities": {}, "sign_in_provider": "password"},
            **changed,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, self.key, "RS256", headers={"kid": self.kid})


class Google:
    """A server on loopback, in a thread. Every user exists, unless `deleted`, from time zero on."""

    def __init__(self) -> None:
        self.signer = Signer.made("key-1")
        self.published = {self.signer.kid: self.signer.certificate}
        self.max_age_s = 3600
        self.valid_since_s: dict[str, int] = {}
        self.disabled: set[str] = set()
        self.deleted: set[str] = set()
        self.down: set[str] = set()  # of "keys", "accounts"
        self.key_fetches = 0
        self.asked = 0  # how often for accounts, answered or not
        self.lookups: list[list[str]] = []  # whom each call asked for
        self.answering = threading.Event()  # to hold answers back
        self.answering.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.answering.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def rotate(self) -> Signer:
        """A new key signs, and the old one is published no more: the old signer."""
        old = self.signer
        self.signer = Signer.made(f"{old.kid}+")
        self.published = {self.signer.kid: self.signer.certificate}
        return old

    def service_account(self) -> dict[str, str]:
        pem = self.signer.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "1",
            "private_key": pem.decode(),
            "client_email": f"hub@{PROJECT}.example.org",
            "token_uri": f"{self.url}/token",
        }

    def answer(self, path: str, body: bytes) -> tuple[int, object]:
        if not self.answering.wait(_ANSWER_S):
            return 504, {}
        if path == "/keys":
            self.key_fetches += 1
            return (503, {}) if "keys" in self.down else (200, self.published)
        if path == "/token":
            return 200, {"access_token": "access", "expires_in": 3600, "token_type": "Bearer"}
        if path == f"/v1/projects/{PROJECT}/accounts:lookup":
            self.asked += 1
            if "accounts" in self.down:
                return 403, {"error": {"message": "PERMISSION_DENIED"}}  # 5xx would be retried
            asked = json.loads(body)["localId"]
            self.lookups.append(asked)
            return 200, {"users": [self._user(id) for id in asked if id not in self.deleted]}
        return 404, {}

    def _user(self, user_id: str) -> dict[str, object]:
        return {
            "localId": user_id,
            "validSince": str(self.valid_since_s.get(user_id, 0)),
            "disabled": user_id in self.disabled,
        }


def encoded(service_account: dict[str, str]) -> str:
    """As `FIREBASE_SERVICE_ACCOUNT_BASE64` has it."""
    return base64.urlsafe_b64encode(json.dumps(service_account).encode()).decode()


def ask_at(url: str, patch: pytest.MonkeyPatch) -> None:
    """The SDK asks this server instead of the real ones."""
    patch.setattr(_token_gen, "ID_TOKEN_CERT_URI", f"{url}/keys")
    patch.setattr(_user_mgt.UserManager, "ID_TOOLKIT_URL", f"{url}/v1")
    # Beside that it asks, in a thread of its own, in which regions its account may be used.
    patch.setattr(
        service_account.Credentials, "_is_regional_access_boundary_lookup_required", lambda _: False
    )


@contextmanager
def running() -> Iterator[Google]:
    google = Google()
    try:
        yield google
    finally:
        google.close()


def _handler(google: Google) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, payload = google.answer(self.path, body)
            text = json.dumps(payload).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.send_header("Cache-Control", f"public, max-age={google.max_age_s}")
            self.send_header("Connection", "close")  # so that none outlives the server
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
