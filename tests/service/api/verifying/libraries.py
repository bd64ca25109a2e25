"""Judges captured requests with what receivers verify with in Python.

A case a line comes in: {"scheme", "secret", "headers", "body" (base64)}. For each library that knows the scheme a verdict
a line goes out: {"case" (its number), "library", "is_good"}. Anything but a refused signature ends the program.
"""

import base64
import hashlib
import hmac
import json
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from standardwebhooks import Webhook, WebhookVerificationError
from stripe import SignatureVerificationError, WebhookSignature


class Refused(Exception):
    pass


def stripe(case, body):
    WebhookSignature.verify_header(body, case["headers"]["x-webhook-signature"], case["secret"], tolerance=300)


def standardwebhooks(case, body):
    Webhook(case["secret"]).verify(body, case["headers"], json_parse=False)


def cryptography(case, body):
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(case["secret"].removeprefix("whpk_")))
    signatures = [part[4:] for part in case["headers"]["webhook-signature"].split(" ") if part.startswith("v1a,")]
    for signature in signatures:
        try:
            return key.verify(base64.b64decode(signature), standard_prefix(case["headers"]) + body)
        except InvalidSignature:
            continue
    raise Refused


def standard_prefix(headers):
    return f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode()


def hmac_of(case, body):
    """The contract's table, written down once more: which bytes are signed by which key, and how that is encoded."""
    headers, secret = case["headers"], case["secret"]
    if case["scheme"] == "STANDARD_WEBHOOKS":
        key, signed = base64.b64decode(secret.removeprefix("whsec_")), standard_prefix(headers) + body
        expected = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        presented = headers["webhook-signature"].split(" ")
    else:
        presented = headers["x-webhook-signature"].split(",")
        prefix = presented[0].removeprefix("t=").encode() + b"." if case["scheme"] == "TIMESTAMPED" else b""
        form = {"TIMESTAMPED": "v1=", "BODY_SHA256": "sha256=", "BODY_HEX": ""}[case["scheme"]]
        expected = form + hmac.digest(secret.encode(), prefix + body, hashlib.sha256).hex()
    if expected not in presented:
        raise Refused


LIBRARIES = {
    "TIMESTAMPED": [stripe, hmac_of],
    "STANDARD_WEBHOOKS": [standardwebhooks, hmac_of],
    "STANDARD_WEBHOOKS_ED25519": [cryptography],
    "BODY_SHA256": [hmac_of],
    "BODY_HEX": [hmac_of],
}
# These take a body as text.
TEXT_ALONE = [stripe, standardwebhooks]


def is_text(body):
    try:
        body.decode()
        return True
    except UnicodeDecodeError:
        return False


for number, line in enumerate(sys.stdin):
    case = json.loads(line)
    body = base64.b64decode(case["body"])
    for library in LIBRARIES[case["scheme"]]:
        if library in TEXT_ALONE and not is_text(body):
            continue
        try:
            library(case, body)
            is_good = True
        except (InvalidSignature, Refused, SignatureVerificationError, WebhookVerificationError):
            is_good = False
        print(json.dumps({"case": number, "library": library.__name__, "is_good": is_good}))
