//! How the values of settings are written: truths, numbers, addresses, ranges, roles, rates, spans of time.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::Roles;
use crate::domain::address::Ports;
use crate::domain::rate::RateLimit;

pub(super) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "on" | "yes" => Ok(true),
        "false" | "0" | "off" | "no" => Ok(false),
        _ => Err("is neither true nor false".to_owned()),
    }
}

pub(super) fn parse_addr(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "is not an address; allowed is IP:PORT, such as 127.0.0.1:50051".to_owned())
}

pub(super) fn parse_cidrs(text: &str) -> Result<Vec<IpNet>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| part.parse().map_err(|_| format!("has {part}, which is no range; allowed is such as 10.0.0.0/8")))
        .collect()
}

/// Ports, comma-separated, or `any`.
pub(super) fn parse_ports(text: &str) -> Result<Ports, String> {
    if text == "any" {
        return Ok(Ports::Any);
    }
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let port = |part: &str| part.parse().ok().filter(|port| *port > 0);
    let ports: Vec<u16> = parts
        .map(|part| {
            port(part).ok_or_else(|| format!("has {part}, which is no port; allowed are 1 to 65535, or any alone"))
        })
        .collect::<Result<_, _>>()?;
    if ports.is_empty() {
        Err("has no port; allowed is such as 443,8443, or any".to_owned())
    } else {
        Ok(Ports::Only(ports))
    }
}

pub(super) fn parse_roles(text: &str) -> Result<Roles, String> {
    let mut roles = Roles { api: false, worker: false };
    for part in text.split(',').map(str::trim) {
        match part {
            "api" => roles.api = true,
            "worker" => roles.worker = true,
            _ => return Err("is not a list of roles; allowed are api, worker and api,worker".to_owned()),
        }
    }
    Ok(roles)
}

pub(super) fn parse_within(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("is not a whole number from {min} to {max}"))
}

/// A number of requests a second, or `unlimited`.
pub(super) fn parse_rate(text: &str) -> Result<Option<RateLimit>, String> {
    let limit = |number: f64| RateLimit::parse(number, 0).ok();
    match text.parse().ok().and_then(limit) {
        _ if text == "unlimited" => Ok(None),
        Some(limit) => Ok(Some(limit)),
        None => Err("is neither a number above 0 nor unlimited".to_owned()),
    }
}

/// `250ms`, `30s`, `5m`, `24h`, `7d`.
pub(crate) fn parse_span(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let millis = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    let span = digits.parse::<u64>().ok().zip(millis).and_then(|(count, unit)| count.checked_mul(unit));
    span.map(Duration::from_millis)
        .ok_or_else(|| "is not a span of time; allowed is such as 250ms, 30s, 5m, 24h, 7d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_units() {
        assert_eq!(parse_span("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_span("7d"), Ok(Duration::from_secs(604_800)));
        for bad in ["", "5", "s", "-1s", "1.5s", "99999999999999999999d"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }
}
