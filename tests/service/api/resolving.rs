//! The guard behind a real resolver: the system's, which asks a name server of this test for names that lead over others
//! to where they should not. What is counted is connections: not one goes to a forbidden address.
//!
//! The test runs once more in a network and with files of its own (Linux namespaces): there the system's resolver asks
//! our server, and public and private addresses are all this machine's, so that every connection would come about. Where
//! namespaces cannot be had, it says that it is skipped.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use hooklane::api::proto::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::process::Command;

use super::guarding::STRICT;
use super::{PATIENCE, Service, endpoint, event, retries, service_with};
use crate::support;

/// What tells the test inside where its database is.
const DATABASE: &str = "RESOLVING_TEST_DATABASE";
/// Where the name server is.
const NAME_SERVER: &str = "127.0.0.53:53";
const PUBLIC: &str = "93.184.216.34";
/// Addresses that the machine has inside, beside those of loopback.
const ADDRESSES: [&str; 4] = [PUBLIC, "10.20.30.40", "169.254.169.254", "fd00::20:30"];
/// Ends every name: nothing of the resolver's findings may be told.
const HIDDEN: &str = "canary-alias.internal";

/// A network of its own, with addresses of every kind, whose resolver asks [`NAME_SERVER`]; in it runs what follows.
const INSIDE: &str = r#"
set -e
resolver=$1 switch=$2
shift 2
ip link set lo up
for address in $ADDRESSES; do ip address add "$address" dev lo || test "${address#*:}" != "$address"; done
mount --bind "$resolver" /etc/resolv.conf
test ! -e /etc/nsswitch.conf || mount --bind "$switch" /etc/nsswitch.conf
exec "$@"
"#;

#[tokio::test]
async fn aliases_that_lead_to_forbidden_addresses_are_blocked_and_nothing_is_dialled() {
    let folder = tempfile::tempdir().expect("a folder");
    let (resolver, switch) = (folder.path().join("resolv.conf"), folder.path().join("nsswitch.conf"));
    let server = NAME_SERVER.trim_end_matches(":53");
    std::fs::write(&resolver, format!("nameserver {server}\noptions timeout:2 attempts:5\n")).expect("written");
    std::fs::write(&switch, "hosts: files dns\n").expect("written");
    let database = support::database().await;
    let inside = async |program: &std::ffi::OsStr, arguments: &[&str]| -> Output {
        let mut command = Command::new("unshare");
        if !is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--mount", "--net", "sh", "-c", INSIDE, "sh"]);
        command.arg(&resolver).arg(&switch).arg(program).args(arguments);
        command.env("ADDRESSES", ADDRESSES.join(" ")).env(DATABASE, &database);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let unavailable = || Output { status: Default::default(), stdout: Vec::new(), stderr: b"no unshare".to_vec() };
        // Longer than what runs inside waits for anything: it says best what did not come.
        let ended = tokio::time::timeout(3 * PATIENCE, command.output()).await;
        ended.expect("it ends").unwrap_or_else(|_| unavailable())
    };
    // Says so where all of it is there.
    let tried = inside("echo".as_ref(), &["inside"]).await;
    if tried.stdout != b"inside\n" {
        skipped(&String::from_utf8_lossy(&tried.stderr));
        return;
    }
    let program = std::env::current_exe().expect("who am I");
    let test = ["--exact", "api::resolving::every_attempt_inside", "--ignored", "--nocapture"];
    let output = inside(program.as_os_str(), &test).await;
    let printed = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && printed.contains("1 passed"), "{printed}");
}

/// Root needs no other users, in whose eyes the database's would be nobody.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

#[expect(clippy::print_stderr, reason = "a case that did not run should not look as if it had")]
fn skipped(why: &str) {
    eprintln!("SKIPPED: a resolver that asks our name server needs namespaces, unshare and ip: {why}");
}

/// What is answered for a name: over which others it leads, and to which addresses, the first time it is asked for them
/// and from then on.
struct Name {
    over: Vec<String>,
    first: &'static [&'static str],
    then: &'static [&'static str],
}

fn hidden(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| format!("{name}.{HIDDEN}")).collect()
}

fn leading(over: &[&str], addresses: &'static [&'static str]) -> Name {
    Name { over: hidden(over), first: addresses, then: addresses }
}

/// The name server: answers over UDP with all of a chain at once, as one that is asked to recurse does.
async fn serve(names: HashMap<&'static str, Name>) {
    let socket = UdpSocket::bind(NAME_SERVER).await.expect("a port of our own");
    let mut asked: HashMap<(String, u16), usize> = HashMap::new();
    let mut query = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut query).await {
        let (name, kind, end) = question(&query[..length]);
        let times = asked.entry((name.clone(), kind)).or_default();
        *times += 1;
        let answer = answer(&query[..end], &name, kind, names.get(name.as_str()), *times == 1);
        let _ = socket.send_to(&answer, from).await;
    }
}

/// The name and the type that are asked for, and where the question ends. Source: RFC 1035, section 4.1.2.
fn question(query: &[u8]) -> (String, u16, usize) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while query[at] != 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..=at + length]).to_lowercase());
        at += 1 + length;
    }
    (labels.join("."), u16::from_be_bytes([query[at + 1], query[at + 2]]), at + 5)
}

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;

/// Question and answer, without compression. Source: RFC 1035, section 4.1.
fn answer(query: &[u8], name: &str, kind: u16, found: Option<&Name>, is_first: bool) -> Vec<u8> {
    let mut records = Vec::new();
    let mut owner = name.to_owned();
    for alias in found.map(|found| &found.over[..]).unwrap_or_default() {
        records.push(record(&owner, CNAME, &encoded(alias)));
        owner.clone_from(alias);
    }
    let addresses = found.map(|found| if is_first { found.first } else { found.then }).unwrap_or_default();
    for address in addresses {
        match (kind, address.parse::<IpAddr>().expect("an address")) {
            (A, IpAddr::V4(address)) => records.push(record(&owner, A, &address.octets())),
            (AAAA, IpAddr::V6(address)) => records.push(record(&owner, AAAA, &address.octets())),
            _ => {}
        }
    }
    let mut answer = query.to_vec();
    // An answer, recursion wanted and done; 3 is that there is no such name.
    answer[2..4].copy_from_slice(&[0x81, if found.is_some() { 0x80 } else { 0x83 }]);
    let counts = [1, u16::try_from(records.len()).expect("a few"), 0, 0];
    answer[4..12].copy_from_slice(&counts.map(u16::to_be_bytes).concat());
    answer.extend(records.concat());
    answer
}

/// Of the class of the internet, to be kept for no time.
fn record(owner: &str, kind: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).expect("short");
    [&encoded(owner)[..], &kind.to_be_bytes(), &[0, 1, 0, 0, 0, 0], &length.to_be_bytes(), data].concat()
}

fn encoded(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| {
        let length = u8::try_from(label.len()).expect("a label");
        std::iter::once(length).chain(label.bytes())
    });
    labels.chain([0]).collect()
}

/// Whom connections reached, whatever the address: by that, how many.
#[derive(Clone, Default)]
struct Reached(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

impl Reached {
    /// Answers 200 at every address of this machine, and keeps no connection; answers the port.
    async fn listen(self) -> u16 {
        let any: SocketAddr = "[::]:0".parse().expect("an address");
        let listener = match TcpListener::bind(any).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind("0.0.0.0:0").await.expect("binds"),
        };
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let address = stream.local_addr().expect("connected").ip().to_canonical();
                *self.0.lock().expect("a lock").entry(address).or_default() += 1;
                tokio::spawn(answer_ok(stream));
            }
        });
        port
    }

    fn counts(&self) -> BTreeMap<IpAddr, usize> {
        self.0.lock().expect("a lock").clone()
    }
}

async fn answer_ok(mut stream: TcpStream) {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4_096]);
    // A request of these tests ends with its envelope's brace.
    while !bytes.ends_with(b"}}") {
        match stream.read(&mut chunk).await {
            Ok(count) if count > 0 => bytes.extend_from_slice(&chunk[..count]),
            _ => return,
        }
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
}

/// One event to one endpoint; answers its delivery once it is over.
async fn deliver(service: &Service, id: &str, state: DeliveryState) -> Delivery {
    let request = PublishRequest { endpoint_ids: vec![id.to_owned()], ..event("order.created") };
    let published = service.publish(request).await;
    let delivery = service.in_state(&published.deliveries[0].delivery_id, state).await;
    let told = format!("{delivery:?}");
    for detail in [HIDDEN, "10.20.30.40", "169.254", "127.0.0", "fd00", "::1", PUBLIC] {
        assert!(!told.contains(detail), "{detail} in {told}");
    }
    delivery
}

/// Run by [`aliases_that_lead_to_forbidden_addresses_are_blocked_and_nothing_is_dialled`], where names are its own.
#[tokio::test]
#[ignore = "it needs a name server of its own: the other test runs it"]
async fn every_attempt_inside() {
    let Some(database) = std::env::var_os(DATABASE) else { return };
    const LONG: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let blocked = [
        ("private.test", leading(&["edge"], &["10.20.30.40"])),
        ("metadata.test", leading(&["edge", "origin"], &["169.254.169.254"])),
        ("loopback.test", leading(&["edge", "origin", "host"], &["127.0.0.1"])),
        ("far.test", leading(&LONG, &["10.20.30.40"])),
        ("private6.test", leading(&["edge"], &["fd00::20:30"])),
        ("loopback6.test", leading(&["edge"], &["::1"])),
        ("mapped.test", leading(&["edge"], &["::ffff:10.20.30.40"])),
        // A public one among them helps none.
        ("mixed.test", leading(&["edge"], &[PUBLIC, "10.20.30.40"])),
        ("mixed-behind.test", leading(&["edge"], &["10.20.30.40", PUBLIC])),
        ("mixed6.test", leading(&["edge", "origin"], &[PUBLIC, "fd00::20:30"])),
        ("straight.test", leading(&[], &["10.20.30.40"])),
    ];
    let lost = [
        ("loop.test", Name { over: vec!["other.test".to_owned(), "loop.test".to_owned()], first: &[], then: &[] }),
        ("itself.test", Name { over: vec!["itself.test".to_owned()], first: &[], then: &[] }),
        ("nowhere.test", leading(&["edge", "10.20.30.40"], &[])),
    ];
    let public = [("public.test", leading(&["edge", "origin"], &[PUBLIC]))];
    // Public the first time it is asked for, and no longer.
    let rebinding =
        [("rebinding.test", Name { over: hidden(&["edge"]), first: &[PUBLIC], then: &["169.254.169.254"] })];
    let names_of = |names: &[(&'static str, Name)]| names.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let (blocked_names, mut lost_names) = (names_of(&blocked), names_of(&lost));
    lost_names.push("unknown.test");
    tokio::spawn(serve(blocked.into_iter().chain(lost).chain(public).chain(rebinding).collect()));

    let reached = Reached::default();
    let port = reached.clone().listen().await;
    let service = service_with(database.into_string().expect("text"), &STRICT).await;
    let register = async |name: &str| {
        let once = Endpoint { retry_policy: Some(retries(0)), ..endpoint(&format!("http://{name}:{port}/")) };
        service.register(once).await.id
    };
    let test = async |id: &str| {
        let request = TestEndpointRequest { endpoint_id: id.to_owned(), ..TestEndpointRequest::default() };
        service.client.clone().test_endpoint(request).await.expect("tried").into_inner().attempt.expect("an attempt")
    };

    // Names lead somewhere here, and connections come about.
    let good = register("public.test").await;
    deliver(&service, &good, DeliveryState::Succeeded).await;
    let mut wanted = BTreeMap::from([(PUBLIC.parse::<IpAddr>().expect("an address"), 1)]);
    assert_eq!(reached.counts(), wanted);
    TcpStream::connect(("10.20.30.40", port)).await.expect("so would those that are forbidden");
    wanted.insert("10.20.30.40".parse().expect("an address"), 1);
    support::eventually("it is counted", || async { (reached.counts() == wanted).then_some(()) }).await;

    for (names, outcome, words) in [
        (blocked_names, AttemptOutcome::Blocked, "blocked: the address is not public"),
        (lost_names, AttemptOutcome::DnsFailed, "the host name did not resolve"),
    ] {
        for name in names {
            let id = register(name).await;
            let mut attempts = deliver(&service, &id, DeliveryState::Failed).await.attempts;
            attempts.push(test(&id).await);
            for attempt in attempts {
                assert_eq!((attempt.outcome(), attempt.error.as_str()), (outcome, words), "{name}: {attempt:?}");
            }
        }
    }
    assert_eq!(reached.counts(), wanted, "nothing was dialled");

    let rebinding = register("rebinding.test").await;
    deliver(&service, &rebinding, DeliveryState::Succeeded).await;
    *wanted.get_mut(&PUBLIC.parse().expect("an address")).expect("counted") += 1;
    assert_eq!(reached.counts(), wanted, "it was public");
    for _ in 0..3 {
        let delivery = deliver(&service, &rebinding, DeliveryState::Failed).await;
        let is_blocked = |attempt: &Attempt| attempt.outcome() == AttemptOutcome::Blocked;
        assert!(delivery.attempts.iter().all(is_blocked), "{delivery:?}");
    }
    assert_eq!(reached.counts(), wanted, "and is dialled no more");
}
