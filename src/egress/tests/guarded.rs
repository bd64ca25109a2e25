//! The guard as a matrix: every forbidden range by its edges, in every spelling that a URL may have, and every trick by
//! which a name or a receiver could lead elsewhere. What is counted is dials: not one goes to a forbidden address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::receiver::Receiver;
use super::script::Script;
use super::stream::Watch;
use super::*;
use crate::domain::address::Ports;

const BLOCKED: &str = "blocked: the address is not public";

/// First and last of each range that is not public, from the registries; what is beside it is.
const FORBIDDEN_V4: [(&str, &str); 17] = [
    ("0.0.0.0", "0.255.255.255"),
    ("10.0.0.0", "10.255.255.255"),
    ("100.64.0.0", "100.127.255.255"),
    ("127.0.0.0", "127.255.255.255"),
    ("169.254.0.0", "169.254.255.255"),
    ("172.16.0.0", "172.31.255.255"),
    ("192.0.0.0", "192.0.0.255"),
    ("192.0.2.0", "192.0.2.255"),
    ("192.31.196.0", "192.31.196.255"),
    ("192.52.193.0", "192.52.193.255"),
    ("192.88.99.0", "192.88.99.255"),
    ("192.168.0.0", "192.168.255.255"),
    ("192.175.48.0", "192.175.48.255"),
    ("198.18.0.0", "198.19.255.255"),
    ("198.51.100.0", "198.51.100.255"),
    ("203.0.113.0", "203.0.113.255"),
    ("224.0.0.0", "255.255.255.255"),
];
const FORBIDDEN_V6: [(&str, &str); 7] = [
    ("::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2620:4f::", "2620:4f:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("4000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
];
/// Where clouds tell their machines' credentials, and the like.
const NOTORIOUS: [&str; 8] = [
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "192.0.0.192",
    "fd00:ec2::254",
    "fe80::a9fe:a9fe",
    "::1",
    "127.0.0.1",
];

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// Hosts that a URL parser takes for this address and no other.
fn spellings_v4(address: Ipv4Addr) -> Vec<String> {
    let number = u32::from(address);
    let [a, b, c, d] = address.octets();
    let (low24, low16) = (number & 0xff_ffff, number & 0xffff);
    let wide: String = address.to_string().chars().map(|c| char::from_u32(c as u32 + 0xfee0).unwrap()).collect();
    vec![
        address.to_string(),
        format!("{address}."),
        number.to_string(),
        format!("0x{number:08x}"),
        format!("0X{number:X}"),
        format!("0{number:o}"),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"),
        format!("0x{a:x}.{b}.0{c:o}.{d}"),
        format!("00000{a:o}.{b}.{c}.{d}"),
        format!("{a}.{low24}"),
        format!("{a}.0x{low24:x}"),
        format!("{a}.{b}.{low16}"),
        // What IDNA makes of full-width digits, and of the dots of other scripts.
        wide,
        format!("{a}\u{3002}{b}\u{3002}{c}\u{3002}{d}"),
        address.to_string().bytes().map(|byte| format!("%{byte:02x}")).collect(),
        format!("[::ffff:{address}]"),
        format!("[::FFFF:{:x}:{:x}]", number >> 16, low16),
        format!("[0:0:0:0:0:ffff:{:x}:{:04x}]", number >> 16, low16),
    ]
}

/// Addresses that hide one of IPv4, whichever that is.
fn hiding_v4(address: Ipv4Addr) -> Vec<String> {
    let number = u32::from(address);
    let (high, low) = (number >> 16, number & 0xffff);
    vec![
        format!("[::{address}]"),
        format!("[64:ff9b::{address}]"),
        format!("[64:ff9b::{high:x}:{low:x}]"),
        format!("[64:ff9b:1::{high:x}:{low:x}]"),
        format!("[2002:{high:x}:{low:x}::]"),
        format!("[2001:0:{high:x}:{low:x}::]"),
        format!("[2001:0:1:1::{:x}:{:x}]", high ^ 0xffff, low ^ 0xffff),
        format!("[fe80::5efe:{high:x}:{low:x}]"),
    ]
}

fn spellings_v6(address: Ipv6Addr) -> Vec<String> {
    let groups = address.segments().map(|group| format!("{group:04X}")).join(":");
    vec![format!("[{address}]"), format!("[{groups}]")]
}

/// URLs of a host that differ in everything else. None has a fragment, a space or a control character.
fn urls(host: &str) -> [String; 7] {
    [
        format!("https://{host}/"),
        format!("HTTPS://{host}:443/a/../b?c=d"),
        format!("http://{host}/"),
        format!("https://example.com@{host}/"),
        format!("https://example.com:443@{host}/"),
        format!("https:\\\\{host}\\"),
        format!("https:{host}"),
    ]
}

/// Whatever the settings allow but forbidden ranges.
fn wide_rules() -> EgressRules {
    EgressRules { allow_http: true, allow_cidrs: Vec::new(), allow_ports: Ports::Any }
}

fn guarded(rules: EgressRules, script: Script) -> Egress {
    let config = Config { rules, proxy: None, user_agent: "hooklane/1.2.3".to_owned() };
    Egress::with(config, RootCertStore::empty(), Resolver::scripted(script)).unwrap()
}

/// Nobody answers for a name.
fn literal() -> Egress {
    guarded(wide_rules(), Script::of(&[]))
}

async fn is_blocked(egress: &Egress, url: &str) {
    assert!(EndpointUrl::parse(url, &wide_rules()).is_err(), "{url} was registered");
    let Some(stored) = EndpointUrl::from_stored(url) else { return };
    let watch = Watch::begin();
    let target = Target::new(&stored, Signer::new(SignatureScheme::Timestamped, [&secret()]), PATIENT).unwrap();
    let result = egress.send(outgoing(&target, &event("{}"))).await;
    assert_eq!((result.outcome, result.status, &*result.error), (AttemptOutcome::Blocked, 0, BLOCKED), "{url}");
    assert_eq!(watch.dialled(), [], "{url}");
}

async fn is_dialled(egress: &Egress, url: &str, address: IpAddr) {
    let parsed = EndpointUrl::parse(url, &wide_rules()).unwrap_or_else(|problem| panic!("{url} {problem}"));
    let watch = Watch::begin();
    let target = Target::new(&parsed, Signer::new(SignatureScheme::Timestamped, [&secret()]), PATIENT).unwrap();
    let result = egress.send(outgoing(&target, &event("{}"))).await;
    assert_eq!(result.outcome, AttemptOutcome::ConnectFailed, "{url}");
    let dialled: Vec<IpAddr> = watch.dialled().into_iter().map(|dialled| dialled.ip().to_canonical()).collect();
    assert_eq!(dialled, [address], "{url}");
}

#[tokio::test]
async fn no_forbidden_address_is_dialled_however_it_is_spelled_and_all_beside_them_are() {
    let egress = literal();
    let mut checked = 0;
    for (first, last) in FORBIDDEN_V4.map(|(first, last)| (v4(first), v4(last))) {
        for address in [first, last] {
            for host in spellings_v4(address).iter().chain(&hiding_v4(address)) {
                for url in urls(host) {
                    is_blocked(&egress, &url).await;
                    checked += 1;
                }
            }
        }
        let before = u32::from(first).checked_sub(1).map(Ipv4Addr::from);
        let after = u32::from(last).checked_add(1).map(Ipv4Addr::from);
        for address in before.into_iter().chain(after) {
            for host in spellings_v4(address) {
                is_dialled(&egress, &format!("https://{host}/"), address.into()).await;
            }
            // What hides even a public one is refused.
            for host in hiding_v4(address) {
                is_blocked(&egress, &format!("https://{host}/")).await;
            }
        }
    }
    for (first, last) in FORBIDDEN_V6.map(|(first, last)| (v6(first), v6(last))) {
        for host in [first, last].into_iter().flat_map(spellings_v6) {
            for url in urls(&host) {
                is_blocked(&egress, &url).await;
                checked += 1;
            }
        }
        let before = u128::from(first).checked_sub(1).map(Ipv6Addr::from);
        let after = u128::from(last).checked_add(1).map(Ipv6Addr::from);
        // 2000::/3 begins and ends beside forbidden ranges; 2001:: and 2002:: have neighbours that are forbidden, too.
        let public = |address: &Ipv6Addr| !FORBIDDEN_V6.iter().any(|(a, z)| (v6(a)..=v6(z)).contains(address));
        for address in before.into_iter().chain(after).filter(public) {
            for host in spellings_v6(address) {
                is_dialled(&egress, &format!("https://{host}/"), address.into()).await;
            }
        }
    }
    for notorious in NOTORIOUS {
        let hosts = match notorious.parse().unwrap() {
            IpAddr::V4(address) => spellings_v4(address),
            IpAddr::V6(address) => spellings_v6(address),
        };
        for host in hosts {
            is_blocked(&egress, &format!("http://{host}/latest/meta-data/")).await;
        }
    }
    assert!(checked > 6_000, "{checked}");
}

#[tokio::test]
async fn a_zone_or_an_unclosed_bracket_is_no_address() {
    for host in
        ["[fe80::1%25eth0]", "[fe80::1%eth0]", "[::1", "::1", "1.2.3.4.5", "256.256.256.256", "0x1.0x2.0x3.0x1ff"]
    {
        assert!(EndpointUrl::parse(&format!("https://{host}/"), &wide_rules()).is_err(), "{host}");
    }
}

async fn send_to(egress: &Egress, url: &str) -> AttemptResult {
    egress.send(outgoing(&target(url, PATIENT), &event("{}"))).await
}

#[tokio::test]
async fn a_name_is_judged_by_each_of_its_addresses_at_each_attempt() {
    const PUBLIC: &str = "93.184.216.34";
    let public: SocketAddr = format!("{PUBLIC}:443").parse().unwrap();
    for forbidden in
        ["10.0.0.1", "169.254.169.254", "127.0.0.1", "::1", "fd00:ec2::254", "::ffff:10.0.0.1", "64:ff9b::a00:1"]
    {
        // Alone, before, behind and between.
        for answer in [
            &[forbidden][..],
            &[PUBLIC, forbidden],
            &[forbidden, PUBLIC],
            &[PUBLIC, "2606:4700::1111", forbidden, "8.8.8.8"],
        ] {
            let (script, watch) = (Script::of(&[answer]), Watch::begin());
            let egress = guarded(wide_rules(), script.clone());
            let result = send_to(&egress, "https://hooks.example.com/").await;
            check(&result, AttemptOutcome::Blocked, 0, BLOCKED);
            assert_eq!((watch.dialled(), script.asked().len()), (vec![], 1), "{answer:?}");
        }
        // Public when it is asked for the first time, and no longer for the second.
        let (script, watch) = (Script::of(&[&[PUBLIC], &[forbidden]]), Watch::begin());
        let egress = guarded(wide_rules(), script.clone());
        let result = send_to(&egress, "https://rebinding.example.com/").await;
        check(&result, AttemptOutcome::ConnectFailed, 0, "connection refused");
        // It was asked once: what was judged is what was dialled.
        assert_eq!((watch.dialled(), script.asked().len()), (vec![public], 1));
        for _ in 0..3 {
            check(&send_to(&egress, "https://rebinding.example.com/").await, AttemptOutcome::Blocked, 0, BLOCKED);
        }
        assert_eq!(watch.dialled(), [public]);
    }
}

#[tokio::test]
async fn the_systems_own_names_for_itself_are_refused() {
    let egress = egress_with(wide_rules());
    let watch = Watch::begin();
    for host in ["localhost", "LOCALHOST", "LocalHost", "\u{24db}ocalhost"] {
        check(&send_to(&egress, &format!("https://{host}/")).await, AttemptOutcome::Blocked, 0, BLOCKED);
    }
    // Not every system knows itself by these.
    for host in ["localhost.", "a.localhost", "ip6-localhost", "localhost.localdomain"] {
        let result = send_to(&egress, &format!("https://{host}/")).await;
        assert!(matches!(result.outcome, AttemptOutcome::Blocked | AttemptOutcome::DnsFailed), "{host} {result:?}");
    }
    assert_eq!(watch.dialled(), []);
}

#[tokio::test]
async fn a_redirect_leads_nowhere() {
    let metadata = "http://169.254.169.254/latest/meta-data/";
    for status in [300, 301, 302, 303, 307, 308] {
        let answer = format!(
            "HTTP/1.1 {status} X\r\nlocation: {metadata}\r\nrefresh: 0; url={metadata}\r\ncontent-length: 0\r\n\r\n"
        );
        let (receiver, watch) = (Receiver::answering(answer).await, Watch::begin());
        let result = send_to(&egress(), &receiver.url("/")).await;
        assert_eq!((result.outcome, result.status), (AttemptOutcome::HttpError, status));
        assert_eq!(watch.dialled(), [receiver.address]);
    }
}

#[tokio::test]
async fn ports_are_judged_with_the_address() {
    let some = EgressRules { allow_ports: Ports::Only(vec![443, 8_443]), ..wide_rules() };
    let egress = guarded(some, Script::of(&[&["93.184.216.34"]]));
    for (url, is_allowed) in [
        ("https://hooks.example.com/", true),
        ("https://hooks.example.com:8443/", true),
        ("http://hooks.example.com/", false),
        ("https://hooks.example.com:22/", false),
        ("https://8.8.8.8:6379/", false),
        ("https://8.8.8.8:8443/", true),
    ] {
        let watch = Watch::begin();
        let result = send_to(&egress, url).await;
        match is_allowed {
            true => assert_eq!((result.outcome, watch.dialled().len()), (AttemptOutcome::ConnectFailed, 1), "{url}"),
            false => {
                check(&result, AttemptOutcome::Blocked, 0, "blocked: the port is not allowed");
                assert_eq!(watch.dialled(), [], "{url}");
            }
        }
    }
    // A forbidden address says so, whatever its port.
    check(&send_to(&egress, "https://10.0.0.1:22/").await, AttemptOutcome::Blocked, 0, BLOCKED);
}
