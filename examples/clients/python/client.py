"""Registers an endpoint, watches, publishes an event, and waits for what comes of it.

    pip install -r requirements.txt && ./generate.sh
    PYTHONPATH=gen python3 client.py localhost:50051 http://127.0.0.1:8080/hooks
"""

import argparse
import json
import os
import sys
import uuid

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hooklane.v1 import delivery_pb2, endpoint_pb2, webhook_service_pb2, webhook_service_pb2_grpc

# Calls are repeated where the service says that it never took them up, such as on a replica that ends. Publish may be
# repeated, too: its idempotency key finds the first one.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "hooklane.v1.WebhookService"}],
            "timeout": "20s",
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        },
        # A stream lasts for as long as it is read.
        {"name": [{"service": "hooklane.v1.WebhookService", "method": "StreamDeliveryEvents"}]},
    ],
}

SETTLED = ("SUCCEEDED", "FAILED", "CANCELED", "EXPIRED")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("server", help="where the service is, such as localhost:50051")
    arguments.add_argument("url", help="where the events are to go")
    arguments = arguments.parse_args()
    with grpc.insecure_channel(arguments.server, [("grpc.service_config", json.dumps(SERVICE_CONFIG))]) as channel:
        try:
            return deliver(webhook_service_pb2_grpc.WebhookServiceStub(channel), arguments.url)
        except grpc.RpcError as error:
            explain(error)
            return 1


def deliver(service, url):
    """One event's way, from the registration of its endpoint to its end."""
    registered = service.RegisterEndpoint(
        webhook_service_pb2.RegisterEndpointRequest(
            endpoint=endpoint_pb2.Endpoint(url=url, event_types=["order.*"])
        ),
        metadata=credential(),
    )
    print(f"registered {registered.endpoint.id}, signs with {registered.secret}")

    # Before publishing: the first message says that from here on nothing is missed.
    events = service.StreamDeliveryEvents(
        webhook_service_pb2.StreamDeliveryEventsRequest(endpoint_ids=[registered.endpoint.id]),
        metadata=credential(),
    )
    assert next(events).HasField("heartbeat")

    published = service.Publish(
        webhook_service_pb2.PublishRequest(
            event_type="order.created",
            payload=json.dumps({"order": 1001}).encode(),
            # Made once for an event and kept with it, so that publishing it again makes no second one.
            idempotency_key=f"order-1001-created-{uuid.uuid4()}",
            endpoint_ids=[registered.endpoint.id],
        ),
        metadata=credential(),
    )
    print(f"published {published.event_id}")

    for message in events:
        if not message.HasField("event"):
            continue
        kind = delivery_pb2.DeliveryEventKind.Name(message.event.kind).removeprefix("DELIVERY_EVENT_KIND_")
        print(f"{kind} {message.event.delivery.id}: {message.event.delivery.reason}")
        if kind in SETTLED:
            events.cancel()
            return 0 if kind == "SUCCEEDED" else 1
    return 1


def credential():
    """The API key, where the service asks for one."""
    key = os.environ.get("HOOKLANE_API_KEY")
    return [("authorization", f"Bearer {key}")] if key else None


def explain(error):
    """Prints why a call failed, with every field that was wrong."""
    print(f"{error.code().name}: {error.details()}", file=sys.stderr)
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            print(f"  reason {info.reason}", file=sys.stderr)
        elif detail.Unpack(bad):
            for violation in bad.field_violations:
                print(f"  {violation.field} {violation.description}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
