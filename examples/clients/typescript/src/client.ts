// Registers an endpoint, watches, publishes an event, and waits for what comes of it.
//
//   npm install && npm run generate && npm run build
//   npm start -- http://localhost:50051 http://127.0.0.1:8080/hooks

import { randomUUID } from "node:crypto";
import { Code, ConnectError, createClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { BadRequestSchema, ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";
import { DeliveryEventKind } from "./gen/hooklane/v1/delivery_pb.js";
import { WebhookService } from "./gen/hooklane/v1/webhook_service_pb.js";

const SETTLED = [
  DeliveryEventKind.SUCCEEDED,
  DeliveryEventKind.FAILED,
  DeliveryEventKind.CANCELED,
  DeliveryEventKind.EXPIRED,
];

/** The API key, where the service asks for one. */
const credential: Interceptor = (next) => (request) => {
  const key = process.env.HOOKLANE_API_KEY;
  if (key) request.header.set("authorization", `Bearer ${key}`);
  return next(request);
};

/** Repeats a call that the service never took up, such as on a replica that ends; streams begin anew by hand. */
const retry: Interceptor = (next) => async (request) => {
  for (let attempt = 1; ; attempt++) {
    try {
      return await next(request);
    } catch (error) {
      if (request.stream || attempt === 5 || ConnectError.from(error).code !== Code.Unavailable) throw error;
      await new Promise((resolve) => setTimeout(resolve, 200 * 2 ** attempt));
    }
  }
};

async function main(server: string, url: string): Promise<number> {
  const transport = createGrpcTransport({ baseUrl: server, interceptors: [retry, credential], defaultTimeoutMs: 20_000 });
  try {
    return await deliver(createClient(WebhookService, transport), url);
  } catch (error) {
    explain(ConnectError.from(error));
    return 1;
  }
}

/** One event's way, from the registration of its endpoint to its end. */
async function deliver(service: Client<typeof WebhookService>, url: string): Promise<number> {
  const { endpoint, secret } = await service.registerEndpoint({ endpoint: { url, eventTypes: ["order.*"] } });
  const endpointIds = [endpoint!.id];
  console.log(`registered ${endpoint!.id}, signs with ${secret}`);

  // Before publishing: the first message says that from here on nothing is missed. A stream lasts as long as it is read.
  const ending = new AbortController();
  const events = service.streamDeliveryEvents({ endpointIds }, { signal: ending.signal, timeoutMs: 0 })[Symbol.asyncIterator]();
  const first = await events.next();
  if (first.done || first.value.item.case !== "heartbeat") return 1;

  const { eventId } = await service.publish({
    eventType: "order.created",
    body: { case: "payload", value: new TextEncoder().encode(JSON.stringify({ order: 1001 })) },
    // Made once for an event and kept with it, so that publishing it again makes no second one.
    idempotencyKey: `order-1001-created-${randomUUID()}`,
    endpointIds,
  });
  console.log(`published ${eventId}`);

  for (let next = await events.next(); !next.done; next = await events.next()) {
    if (next.value.item.case !== "event") continue;
    const { kind, delivery } = next.value.item.value;
    console.log(`${DeliveryEventKind[kind]} ${delivery!.id}: ${delivery!.reason}`);
    if (SETTLED.includes(kind)) {
      ending.abort();
      return kind === DeliveryEventKind.SUCCEEDED ? 0 : 1;
    }
  }
  return 1;
}

/** Prints why a call failed, with every field that was wrong. */
function explain(error: ConnectError): void {
  console.error(`${Code[error.code]}: ${error.rawMessage}`);
  for (const { reason } of error.findDetails(ErrorInfoSchema)) console.error(`  reason ${reason}`);
  for (const { fieldViolations } of error.findDetails(BadRequestSchema)) {
    for (const { field, description } of fieldViolations) console.error(`  ${field} ${description}`);
  }
}

const [server, url] = process.argv.slice(2);
if (!server || !url) {
  console.error("usage: npm start -- http://localhost:50051 URL");
  process.exit(64);
}
process.exitCode = await main(server, url);
