// A webhook receiver that verifies, with Node's own modules alone.
//
// WEBHOOK_SECRET=whsec_… PORT=8080 node receiver.mjs
import { createHmac, createPublicKey, timingSafeEqual, verify } from "node:crypto";
import { createServer } from "node:http";

const SECRETS = process.env.WEBHOOK_SECRET.split(","); // The old one and the new while a rotation overlaps.
const TOLERANCE_SECONDS = 300;
const BODY_BYTES_MAX = 1 << 20;

/** Whether that secret signed the body within the last five minutes. Throws where the headers cannot be read. */
function isSigned(secret, headers, body) {
  let signedAt, signed, presented, expected;
  if (headers["webhook-signature"]) {
    // STANDARD_WEBHOOKS and its Ed25519: v1,<base64> or v1a,<base64>
    signedAt = headers["webhook-timestamp"];
    signed = Buffer.concat([Buffer.from(`${headers["webhook-id"]}.${signedAt}.`), body]);
    presented = headers["webhook-signature"].split(" ");
    const key = Buffer.from(secret.replace(/^whsec_/, ""), "base64");
    expected = "v1," + createHmac("sha256", key).update(signed).digest("base64");
  } else {
    // TIMESTAMPED: t=<unix seconds>,v1=<hex>
    presented = headers["x-webhook-signature"].split(",");
    signedAt = presented.find((part) => part.startsWith("t=")).slice(2);
    signed = Buffer.concat([Buffer.from(`${signedAt}.`), body]);
    expected = "v1=" + createHmac("sha256", secret).update(signed).digest("hex");
  }
  const distance = Math.abs(Date.now() / 1000 - Number(signedAt));
  if (Number.isNaN(distance)) throw new Error("no time is signed");
  if (distance > TOLERANCE_SECONDS) return false;
  if (secret.startsWith("whpk_")) {
    // Everybody knows a public key: it must never be the key of an HMAC.
    const x = Buffer.from(secret.slice(5), "base64").toString("base64url");
    const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
    const signatures = presented.filter((part) => part.startsWith("v1a,"));
    return signatures.some((part) => verify(null, signed, key, Buffer.from(part.slice(4), "base64")));
  }
  return presented.map((part) => Buffer.from(part)).some((part) =>
    part.length === expected.length && timingSafeEqual(part, Buffer.from(expected)));
}

const server = createServer(async (request, response) => {
  const chunks = []; // The body as it came, not parsed.
  let [size, status] = [0, 400];
  try {
    for await (const chunk of request) {
      if ((size += chunk.length) > BODY_BYTES_MAX) throw new Error("too large");
      chunks.push(chunk);
    }
    const body = Buffer.concat(chunks);
    status = SECRETS.some((secret) => isSigned(secret, request.headers, body)) ? 204 : 401;
  } catch { /* unreadable: 400 */ }
  if (status === 204) console.log("received", request.headers["x-webhook-event"], request.headers["x-webhook-id"]);
  response.writeHead(status).end(); // Make it safely yours before; X-Webhook-ID tells a repeat.
});
server.listen(process.env.PORT ?? 8080, "127.0.0.1", () =>
  console.log(`listening http://127.0.0.1:${server.address().port}`));
