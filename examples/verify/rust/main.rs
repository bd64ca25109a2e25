//! A webhook receiver that verifies: `WEBHOOK_SECRET=whsec_… PORT=8080 cargo run --example verify`.
#![expect(clippy::print_stdout, reason = "it shows what it receives")]

use axum::{Router, body::Bytes, http::HeaderMap, http::StatusCode};
use base64::prelude::{BASE64_STANDARD as BASE64, Engine as _};
use ed25519_dalek::{Signature, VerifyingKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use subtle::ConstantTimeEq as _;

const TOLERANCE_SECONDS: u64 = 300;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let secrets = std::env::var("WEBHOOK_SECRET")?; // The old one and the new, with a comma, while a rotation overlaps.
    let port: u16 = std::env::var("PORT").map_or(Ok(8080), |port| port.parse())?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening http://{}", listener.local_addr()?);
    let receive = async move |headers: HeaderMap, body: Bytes| {
        let verdicts: Option<Vec<bool>> = secrets.split(',').map(|secret| is_signed(secret, &headers, &body)).collect();
        let Some(verdicts) = verdicts else { return StatusCode::BAD_REQUEST };
        if !verdicts.contains(&true) {
            return StatusCode::UNAUTHORIZED;
        }
        println!("received {:?} {:?}", headers["x-webhook-event"], headers["x-webhook-id"]);
        StatusCode::NO_CONTENT // Make it safely yours before; X-Webhook-ID tells a repeat.
    };
    Ok(axum::serve(listener, Router::new().fallback(receive)).await?)
}

/// Whether that secret signed the body within the last five minutes; `None` where the headers cannot be read.
fn is_signed(secret: &str, headers: &HeaderMap, body: &[u8]) -> Option<bool> {
    let header = |name| headers.get(name)?.to_str().ok();
    let hmac = |key: &[u8], signed: &[u8]| {
        let mac = Hmac::<sha2::Sha256>::new_from_slice(key).ok()?.chain_update(signed);
        Some(Bytes::copy_from_slice(&mac.finalize().into_bytes()))
    };
    // STANDARD_WEBHOOKS and its Ed25519: v1,<base64> or v1a,<base64>. TIMESTAMPED: t=<unix seconds>,v1=<hex>
    let is_standard = headers.contains_key("webhook-signature");
    let value = header(if is_standard { "webhook-signature" } else { "x-webhook-signature" })?;
    let mut presented = value.split(if is_standard { ' ' } else { ',' });
    let in_value = || presented.clone().find_map(|part| part.strip_prefix("t="));
    let signed_at = if is_standard { header("webhook-timestamp")? } else { in_value()? };
    let id = if is_standard { format!("{}.", header("webhook-id")?) } else { String::new() };
    let signed = [id.as_bytes(), signed_at.as_bytes(), b".", body].concat();
    if jiff::Timestamp::now().as_second().abs_diff(signed_at.parse().ok()?) > TOLERANCE_SECONDS {
        return Some(false);
    }
    // Everybody knows a public key: it must never be the key of an HMAC.
    if let Some(key) = secret.strip_prefix("whpk_") {
        let key = VerifyingKey::from_bytes(&BASE64.decode(key).ok()?.try_into().ok()?).ok()?;
        let is_good = |bytes: Vec<u8>| Some(key.verify_strict(&signed, &Signature::from_slice(&bytes).ok()?).is_ok());
        let mut signatures = presented.filter_map(|part| BASE64.decode(part.strip_prefix("v1a,")?).ok());
        return Some(signatures.any(|bytes| is_good(bytes) == Some(true)));
    }
    let expected = match secret.strip_prefix("whsec_").filter(|_| is_standard) {
        Some(key) => format!("v1,{}", BASE64.encode(hmac(&BASE64.decode(key).ok()?, &signed)?)),
        None => format!("v1={:x}", hmac(secret.as_bytes(), &signed)?),
    };
    Some(presented.any(|part| part.as_bytes().ct_eq(expected.as_bytes()).into()))
}
