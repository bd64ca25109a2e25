"""A webhook receiver that verifies: WEBHOOK_SECRET=whsec_… PORT=8080 python3 receiver.py

It needs the standard library alone, and for Ed25519 `pip install cryptography`."""

import base64
import hmac
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRETS = os.environ["WEBHOOK_SECRET"].split(",")  # The old one and the new while a rotation overlaps.
TOLERANCE_SECONDS, BODY_BYTES_MAX = 300, 1 << 20


def is_signed(secret: str, headers, body: bytes) -> bool:
    """Whether that secret signed the body within the last five minutes. Raises where the headers cannot be read."""
    if "webhook-signature" in headers:  # STANDARD_WEBHOOKS and its Ed25519: v1,<base64> or v1a,<base64>
        signed_at, presented = headers["webhook-timestamp"], headers["webhook-signature"].split(" ")
        signed = f"{headers['webhook-id']}.{signed_at}.".encode() + body
        key = base64.b64decode(secret.split("_", 1)[-1])
        expected = "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    else:  # TIMESTAMPED: t=<unix seconds>,v1=<hex>
        presented = headers["x-webhook-signature"].split(",")
        signed_at = dict(part.split("=", 1) for part in presented)["t"]
        signed, key = f"{signed_at}.".encode() + body, secret.encode()
        expected = "v1=" + hmac.digest(key, signed, "sha256").hex()
    if abs(time.time() - int(signed_at)) > TOLERANCE_SECONDS:
        return False
    if secret.startswith("whpk_"):  # Everybody knows a public key: it must never be the key of an HMAC.
        return any(part.startswith("v1a,") and is_ed25519(key, part[4:], signed) for part in presented)
    return any(hmac.compare_digest(part.encode(), expected.encode()) for part in presented)


def is_ed25519(key: bytes, signature: str, signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        return Ed25519PublicKey.from_public_bytes(key).verify(base64.b64decode(signature), signed) is None
    except InvalidSignature:
        return False


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        try:
            length = min(max(int(self.headers["content-length"]), 0), BODY_BYTES_MAX)
            body = self.rfile.read(length)  # As it came, not parsed.
            status = 204 if any(is_signed(secret, self.headers, body) for secret in SECRETS) else 401
        except (AttributeError, KeyError, TypeError, ValueError):
            status = 400
        if status == 204:  # Make it safely yours here; X-Webhook-ID tells a repeat.
            print("received", self.headers["x-webhook-event"], self.headers["x-webhook-id"], flush=True)
        self.send_response(status)
        self.end_headers()


server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", 8080))), Receiver)
print(f"listening http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
