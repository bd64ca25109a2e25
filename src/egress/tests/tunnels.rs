//! The egress proxy: what it is asked for, and that the guard judges before it is asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::receiver::Receiver;
use super::script::Script;
use super::*;
use crate::domain::address::Ports;

/// A proxy that says `answer` and then leads to `receiver`, whatever it was asked for, and remembers that.
struct FakeProxy {
    listener: Receiver,
    asked: Arc<Mutex<Vec<String>>>,
}

impl FakeProxy {
    async fn start(answer: &'static str, receiver: SocketAddr) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&asked);
        let listener = Receiver::start(move |mut stream| {
            let heard = Arc::clone(&heard);
            async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                heard.lock().unwrap().push(String::from_utf8(head).unwrap());
                let _ = stream.write_all(answer.as_bytes()).await;
                let Ok(mut there) = TcpStream::connect(receiver).await else { return };
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut there).await;
            }
        })
        .await;
        Self { listener, asked }
    }

    fn egress(&self, script: Script, resolves: bool) -> Egress {
        egress_through(self.listener.address, script, resolves)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// An egress whose one way out is there; names have these addresses.
fn egress_through(address: SocketAddr, script: Script, resolves: bool) -> Egress {
    let proxy = Proxy::parse(&format!("http://user:p%40ss@{address}"), resolves).unwrap();
    // Nothing of loopback is allowed: the proxy is where the setting says.
    let rules = EgressRules { allow_http: true, allow_cidrs: Vec::new(), allow_ports: Ports::Only(vec![80, 443]) };
    let config = Config { rules, proxy: Some(proxy), user_agent: "hooklane/1.2.3".to_owned() };
    Egress::with(config, RootCertStore::empty(), Resolver::scripted(script)).unwrap()
}

const GOOD: &str = "HTTP/1.1 200 Connection established\r\nvia: a proxy\r\n\r\n";

async fn answering() -> Receiver {
    Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await
}

async fn send_through(egress: &Egress, url: &str) -> AttemptResult {
    send(egress, url, PATIENT).await
}

#[tokio::test]
async fn the_proxy_is_asked_for_the_address_that_was_judged() {
    let receiver = answering().await;
    let proxy = FakeProxy::start(GOOD, receiver.address).await;
    let script = Script::of(&[&["93.184.216.34"]]);
    let egress = proxy.egress(script.clone(), false);
    for _ in 0..2 {
        let result = send_through(&egress, "http://hooks.example.com/in").await;
        check(&result, AttemptOutcome::Succeeded, 200, "");
    }
    let expected = "CONNECT 93.184.216.34:80 HTTP/1.1\r\nHost: 93.184.216.34:80\r\nProxy-Authorization: Basic \
                    dXNlcjpwQHNz\r\n\r\n";
    assert_eq!((proxy.asked(), script.asked().len()), (vec![expected.to_owned()], 1), "the tunnel is kept");
}

#[tokio::test]
async fn what_is_forbidden_is_not_asked_for() {
    let receiver = answering().await;
    let proxy = FakeProxy::start(GOOD, receiver.address).await;
    let mixed = Script::of(&[&["93.184.216.34", "10.0.0.1"]]);
    for (egress, url, error) in [
        (proxy.egress(mixed.clone(), false), "http://mixed.example.com/", "blocked: the address is not public"),
        (proxy.egress(mixed.clone(), false), "http://169.254.169.254/", "blocked: the address is not public"),
        (proxy.egress(mixed.clone(), false), "http://8.8.8.8:22/", "blocked: the port is not allowed"),
        // Names are the proxy's then; addresses and ports are not.
        (proxy.egress(mixed.clone(), true), "http://169.254.169.254/", "blocked: the address is not public"),
        (proxy.egress(mixed.clone(), true), "http://2852039166/", "blocked: the address is not public"),
        (proxy.egress(mixed.clone(), true), "http://[::1]/", "blocked: the address is not public"),
        (proxy.egress(mixed, true), "http://mixed.example.com:22/", "blocked: the port is not allowed"),
    ] {
        check(&send_through(&egress, url).await, AttemptOutcome::Blocked, 0, error);
    }
    assert_eq!((proxy.listener.connections(), receiver.connections()), (0, 0));
}

#[tokio::test]
async fn a_proxy_that_resolves_is_asked_for_the_name() {
    let receiver = answering().await;
    let proxy = FakeProxy::start(GOOD, receiver.address).await;
    let script = Script::of(&[]);
    let result = send_through(&proxy.egress(script.clone(), true), "http://hooks.example.com/in").await;
    check(&result, AttemptOutcome::Succeeded, 200, "");
    assert!(proxy.asked()[0].starts_with("CONNECT hooks.example.com:80 HTTP/1.1\r\n"), "{:?}", proxy.asked());
    assert!(script.asked().is_empty());
}

#[tokio::test]
async fn a_refused_address_is_followed_by_the_next() {
    let receiver = answering().await;
    for refusal in ["HTTP/1.1 403 Forbidden\r\n\r\n", "HTTP/1.1 502 X\r\ncontent-length: 3\r\n\r\nwhy"] {
        let proxy = FakeProxy::start(refusal, receiver.address).await;
        let egress = proxy.egress(Script::of(&[&["2606:4700::1111", "93.184.216.34"]]), false);
        let result = send_through(&egress, "https://hooks.example.com/").await;
        check(&result, AttemptOutcome::ConnectFailed, 0, "the egress proxy refused the connection");
        let asked: Vec<_> = proxy.asked().iter().map(|head| head.split(' ').nth(1).unwrap().to_owned()).collect();
        assert_eq!(asked, ["[2606:4700::1111]:443", "93.184.216.34:443"]);
    }
}

#[tokio::test]
async fn a_proxy_that_talks_nonsense_or_not_at_all_fails_the_attempt() {
    let receiver = answering().await;
    let endless = Box::leak("x".repeat(20_000).into_boxed_str());
    for nonsense in ["SSH-2.0\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", endless] {
        let proxy = FakeProxy::start(nonsense, receiver.address).await;
        let egress = proxy.egress(Script::of(&[&["93.184.216.34"]]), false);
        let result = send_through(&egress, "http://hooks.example.com/").await;
        check(&result, AttemptOutcome::ConnectFailed, 0, "the egress proxy cannot be reached");
    }
    let silent = Receiver::start(|mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let egress = egress_through(silent.address, Script::of(&[&["93.184.216.34"]]), false);
    let result = send(&egress, "http://hooks.example.com/", SHORT).await;
    check(&result, AttemptOutcome::Timeout, 0, "timeout: no answer within 0.5 s");
    // Bound and closed again: nobody listens there.
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let egress = egress_through(gone, Script::of(&[&["93.184.216.34"]]), false);
    let result = send_through(&egress, "http://hooks.example.com/").await;
    check(&result, AttemptOutcome::ConnectFailed, 0, "the egress proxy cannot be reached");
}
