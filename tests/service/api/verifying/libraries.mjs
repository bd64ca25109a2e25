// Judges captured requests with what receivers verify with in Node. Lines in and out are those of libraries.py.
import { createRequire } from "node:module";
import { createPublicKey, verify } from "node:crypto";
import { createInterface } from "node:readline";

// Its one argument is the folder whose node_modules has the package.
const { Webhook, WebhookVerificationError } = createRequire(`${process.argv[2]}/`)("standardwebhooks");

const LIBRARIES = {
  STANDARD_WEBHOOKS: { "npm standardwebhooks": standardwebhooks },
  STANDARD_WEBHOOKS_ED25519: { "node:crypto": nodeCrypto },
};

function standardwebhooks({ secret, headers }, body) {
  try {
    new Webhook(secret).verify(body, headers, { jsonParse: false });
    return true;
  } catch (error) {
    if (error instanceof WebhookVerificationError) return false;
    throw error;
  }
}

function nodeCrypto({ secret, headers }, body) {
  const x = Buffer.from(secret.slice("whpk_".length), "base64").toString("base64url");
  const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
  const signed = Buffer.concat([Buffer.from(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.`), body]);
  const signatures = headers["webhook-signature"].split(" ").filter((part) => part.startsWith("v1a,"));
  return signatures.some((part) => verify(null, signed, key, Buffer.from(part.slice("v1a,".length), "base64")));
}

let number = 0;
for await (const line of createInterface({ input: process.stdin })) {
  const one = JSON.parse(line);
  const body = Buffer.from(one.body, "base64");
  // The package takes a body as text.
  const isText = Buffer.from(body.toString(), "utf8").equals(body);
  for (const [library, judge] of Object.entries(LIBRARIES[one.scheme] ?? {})) {
    if (judge === standardwebhooks && !isText) continue;
    console.log(JSON.stringify({ case: number, library, is_good: judge(one, body) }));
  }
  number += 1;
}
