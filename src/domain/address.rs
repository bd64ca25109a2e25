//! Which addresses and ports a request may be sent to: every non-public range is forbidden unless a setting allows it.
//! Source: the IANA special-purpose address registries for IPv4 and IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// What the settings allow beyond https to public addresses.
#[derive(Debug, Clone, Default)]
pub struct EgressRules {
    /// Whether plain http is allowed.
    pub allow_http: bool,
    /// Otherwise forbidden ranges that may be dialled, at any port.
    pub allow_cidrs: Vec<IpNet>,
    /// At which ports public addresses may be dialled.
    pub allow_ports: Ports,
}

/// Some ports, or all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// Every port.
    Any,
    /// These.
    Only(Vec<u16>),
}

/// The one of https.
impl Default for Ports {
    fn default() -> Self {
        Self::Only(vec![443])
    }
}

impl Ports {
    fn has(&self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Only(ports) => ports.contains(&port),
        }
    }
}

/// Why an address may not be dialled. Says nothing of which range: that would describe the network to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// It is in a range that is not public.
    #[error("the address is not public")]
    Address,
    /// It is public, and the port is none of those that may be dialled there.
    #[error("the port is not allowed")]
    Port,
}

impl EgressRules {
    /// Judges the address that is about to be dialled.
    ///
    /// An IPv4-mapped IPv6 address is judged as the IPv4 address that the kernel would dial, and by nothing else: a range
    /// of IPv6 that is allowed opens no IPv4.
    pub fn judge(&self, address: SocketAddr) -> Result<(), Forbidden> {
        let ip = address.ip().to_canonical();
        if self.allow_cidrs.iter().any(|range| range.contains(&ip)) {
            return Ok(());
        }
        let is_public = match ip {
            IpAddr::V4(v4) => is_public_v4(v4),
            IpAddr::V6(v6) => is_public_v6(v6),
        };
        match is_public {
            false => Err(Forbidden::Address),
            true => self.judge_public_port(address.port()),
        }
    }

    /// Judges the port of a name whose addresses are not known: they may be in a range that is allowed, at any port.
    pub fn judge_port(&self, port: u16) -> Result<(), Forbidden> {
        if self.allow_cidrs.is_empty() { self.judge_public_port(port) } else { Ok(()) }
    }

    /// Judges a port at which a public address is dialled.
    pub fn judge_public_port(&self, port: u16) -> Result<(), Forbidden> {
        if self.allow_ports.has(port) { Ok(()) } else { Err(Forbidden::Port) }
    }
}

const fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !matches!(
        (a, b, c),
        (0 | 10 | 127, _, _)            // this network, private, loopback
        | (100, 64..=127, _)            // shared address space (RFC 6598)
        | (169, 254, _)                 // link-local, cloud metadata
        | (172, 16..=31, _)             // private
        | (192, 0, 0 | 2)               // protocol assignments, documentation
        | (192, 31, 196) | (192, 52, 193) | (192, 175, 48) // AS112, AMT
        | (192, 88, 99)                 // 6to4 relay anycast
        | (192, 168, _)                 // private
        | (198, 18 | 19, _)             // benchmarking
        | (198, 51, 100) | (203, 0, 113) // documentation
        | (224..=255, _, _) // multicast, reserved, broadcast
    )
}

/// Only 2000::/3 is global unicast; what is special within it is named. Everything outside it is forbidden,
/// and so is every transition form that hides another address (NAT64, 6to4, Teredo): an allowed IPv4 receiver
/// can always be written as IPv4.
const fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    a & 0xe000 == 0x2000
        && !matches!(
            (a, b),
            (0x2001, 0..=0x01ff)          // protocol assignments: Teredo, benchmarking, ORCHID
            | (0x2001, 0x0db8)            // documentation
            | (0x2002, _)                 // 6to4
            | (0x2620, 0x004f)            // AS112
            | (0x3fff, 0..=0x0fff) // documentation (RFC 9637)
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, public: bool) {
        let parsed = SocketAddr::new(address.parse().expect(address), 443);
        assert_eq!(EgressRules::default().judge(parsed).is_ok(), public, "{address}");
    }

    #[test]
    fn ranges_end_where_the_registries_say() {
        for (inside, outside) in [
            ("10.255.255.255", "11.0.0.0"),
            ("0.0.0.0", "1.0.0.0"),
            ("127.255.255.255", "128.0.0.0"),
            ("100.64.0.0", "100.63.255.255"),
            ("100.127.255.255", "100.128.0.0"),
            ("169.254.169.254", "169.253.255.255"),
            ("172.16.0.0", "172.15.255.255"),
            ("172.31.255.255", "172.32.0.0"),
            ("192.0.2.255", "192.0.3.0"),
            ("192.168.0.0", "192.167.255.255"),
            ("198.19.255.255", "198.20.0.0"),
            ("203.0.113.0", "203.0.112.255"),
            ("224.0.0.1", "223.255.255.255"),
            ("255.255.255.255", "8.8.8.8"),
            ("::", "2606:4700::1111"),
            ("::1", "2a00::1"),
            ("::ffff:10.0.0.1", "::ffff:8.8.8.8"),
            ("64:ff9b::8.8.8.8", "2001:4860:4860::8888"),
            ("2001::1", "2001:200::1"),
            ("2001:db8::1", "2001:db9::1"),
            ("2002:7f00:1::", "2003::1"),
            ("fc00::1", "2620:50::1"),
            ("fe80::1", "3ffe::1"),
            ("ff02::1", "2400::1"),
            ("fd00:ec2::254", "2600::1"),
        ] {
            check(inside, false);
            check(outside, true);
        }
    }

    #[test]
    fn an_allowed_range_admits_its_mapped_form_too() {
        let rules = EgressRules { allow_cidrs: vec!["127.0.0.0/8".parse().expect("cidr")], ..EgressRules::default() };
        for (address, allowed) in [("127.0.0.1", true), ("::ffff:127.0.0.1", true), ("::1", false), ("10.0.0.1", false)]
        {
            let address = SocketAddr::new(address.parse().expect(address), 8_080);
            assert_eq!(rules.judge(address).is_ok(), allowed, "{address}");
        }
    }

    #[test]
    fn an_allowed_range_of_ipv6_opens_no_ipv4() {
        let rules = EgressRules { allow_cidrs: vec!["::/0".parse().expect("cidr")], ..EgressRules::default() };
        for (address, allowed) in [("::1", true), ("::ffff:127.0.0.1", false), ("127.0.0.1", false)] {
            let address = SocketAddr::new(address.parse().expect(address), 443);
            assert_eq!(rules.judge(address).is_ok(), allowed, "{address}");
        }
    }

    #[test]
    fn ports_are_those_of_the_setting_at_public_addresses_and_any_where_a_range_is_allowed() {
        let (public, private) = ("8.8.8.8".parse().expect("public"), "10.0.0.1".parse().expect("private"));
        let some = EgressRules {
            allow_ports: Ports::Only(vec![443, 8_443]),
            allow_cidrs: vec!["10.0.0.0/8".parse().expect("cidr")],
            ..EgressRules::default()
        };
        let any = EgressRules { allow_ports: Ports::Any, ..EgressRules::default() };
        for (rules, address, port, judged) in [
            (&some, public, 443, Ok(())),
            (&some, public, 8_443, Ok(())),
            (&some, public, 80, Err(Forbidden::Port)),
            (&some, public, 0, Err(Forbidden::Port)),
            (&some, private, 22, Ok(())),
            (&any, public, 22, Ok(())),
            (&any, private, 443, Err(Forbidden::Address)),
        ] {
            assert_eq!(rules.judge(SocketAddr::new(address, port)), judged, "{address} {port}");
        }
        assert_eq!((some.judge_port(22), any.judge_port(22)), (Ok(()), Ok(())));
        assert_eq!(EgressRules::default().judge_port(22), Err(Forbidden::Port));
    }
}
