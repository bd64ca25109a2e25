//! `hooklane bench-attacker`: somebody who does a service harm, in a process of its own that a benchmark starts beside
//! well-behaved callers. It tells what it did at an address of its own, and ends with its input.
//!
//! Frames are written by hand: no client library sends what these do.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use clap::ValueEnum as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tonic::Streaming;

use super::callers;
use super::process::Process;
use crate::api::proto::{StreamDeliveryEventsRequest, StreamDeliveryEventsResponse};
use crate::cli::{Failure, say};

/// Do a service harm, for the benchmark
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is done
    #[arg(long, value_enum)]
    kind: Kind,
    /// To whom
    #[arg(long)]
    service: SocketAddr,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    IdleStreams,
    RapidResets,
    Pings,
    Oversized,
    HalfOpen,
    HalfHello,
    SilentHello,
}

impl Kind {
    /// Those against a service without TLS.
    pub(super) const PLAIN: [Self; 5] =
        [Self::IdleStreams, Self::RapidResets, Self::Pings, Self::Oversized, Self::HalfOpen];
    /// Those against one with it.
    pub(super) const TLS: [Self; 2] = [Self::HalfHello, Self::SilentHello];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::IdleStreams => "idle streams",
            Self::RapidResets => "rapid resets",
            Self::Pings => "ping flood",
            Self::Oversized => "oversized lengths",
            Self::HalfOpen => "half-open connections",
            Self::HalfHello => "half a ClientHello",
            Self::SilentHello => "ClientHello and silence",
        }
    }
}

/// What it has done so far.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Deeds {
    /// Streams that it holds.
    pub(super) held: u64,
    /// Pings, or calls that come to nothing, that it sent in floods.
    pub(super) sent: u64,
    /// Its connections that the service ended because of what they sent, or did not send.
    pub(super) ended: u64,
}

/// The process, seen from the benchmark. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Attacker {
    process: Process,
    deeds: SocketAddr,
}

impl Attacker {
    /// Starts it, and waits until it is at work. It gets what is left of the processors: in truth it has its own.
    pub(super) async fn start(kind: Kind, service: SocketAddr) -> Result<Self, Failure> {
        let service = service.to_string();
        let kind = kind.to_possible_value().ok_or_else(|| Failure::internal("an attack that has no name"))?;
        let arguments = ["bench-attacker", "--kind", kind.get_name(), "--service", &service];
        let process = Process::start_last("the attacker", &arguments).await?;
        let deeds = process.address("deeds")?;
        Ok(Self { process, deeds })
    }

    pub(super) async fn deeds(&self) -> Result<Deeds, Failure> {
        let asked = async {
            let mut text = Vec::new();
            TcpStream::connect(self.deeds).await?.read_to_end(&mut text).await?;
            Ok::<_, std::io::Error>(serde_json::from_slice(&text)?)
        };
        asked.await.map_err(|error| self.process.failure(&format!("did not tell its deeds: {error}")))
    }
}

const IDLE_STREAMS: usize = 10_000;
/// Streams of one connection: fewer than the server admits.
const STREAMS_OF_ONE: usize = 500;
/// Connections that flood at once.
const FLOODING: usize = 8;
/// Connections that say nothing, or half of a greeting.
const HALF_OPEN: usize = 500;
/// Between two bursts of one flooding connection, and the pings, or calls that come to nothing, of a burst: 16,000 a second
/// in all. More would measure what is left of two processors to the callers.
const PACE: Duration = Duration::from_millis(50);
const BURST: usize = 100;
/// The attackers' address, which is not the callers': what an address may have at once is shared by all who come from it.
const OWN_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Attacks until the input ends.
pub async fn run(args: Args) -> Result<(), Failure> {
    // Held connections are files; what the system does not grant shows in the counts.
    let _ = rlimit::increase_nofile_limit(1 << 20);
    let cannot = |error: std::io::Error| Failure::other(format!("the attacker cannot listen: {error}"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(cannot)?;
    let (service, mut floods) = (args.service, Floods::default());
    let mut streams = Vec::new();
    match args.kind {
        Kind::IdleStreams => streams = hold_streams(service).await?,
        Kind::RapidResets => floods.start(service, resets),
        Kind::Pings => floods.start(service, |_| ping()),
        Kind::Oversized => floods.start(service, oversized),
        // Every other one says nothing at all.
        Kind::HalfOpen => floods.hold(service, &[&PREFACE[..PREFACE.len() / 2], &[]]),
        Kind::HalfHello => {
            let hello = client_hello()?;
            floods.hold(service, &[&hello[..hello.len() / 2]]);
        }
        Kind::SilentHello => floods.hold(service, &[&client_hello()?]),
    }
    say(&format!("ready deeds={}", listener.local_addr().map_err(cannot)?))?;
    let tell = async {
        while let Ok((mut stream, _)) = listener.accept().await {
            let deeds = Deeds {
                held: streams.len() as u64,
                sent: floods.sent.load(Relaxed),
                ended: floods.ended.load(Relaxed),
            };
            let _ = stream.write_all(&serde_json::to_vec(&deeds).unwrap_or_default()).await;
        }
    };
    tokio::select! {
        () = tell => {}
        () = super::receiver::input_ended() => {}
    }
    Ok(())
}

type Streams = Vec<Streaming<StreamDeliveryEventsResponse>>;

/// As many streams as the service admits of those that are wanted.
async fn hold_streams(service: SocketAddr) -> Result<Streams, Failure> {
    let clients = callers::connect_without_deadline(service, IDLE_STREAMS.div_ceil(STREAMS_OF_ONE))?;
    let mut streams = Vec::with_capacity(IDLE_STREAMS);
    for place in 0..IDLE_STREAMS {
        let mut client = clients[place % clients.len()].clone();
        // Of a kind that nothing here is of: they tell of their being there and of nothing else.
        let request = StreamDeliveryEventsRequest {
            event_types: vec!["idle".to_owned()],
            ..StreamDeliveryEventsRequest::default()
        };
        match client.stream_delivery_events(request).await {
            Ok(stream) => streams.push(stream.into_inner()),
            Err(status) if status.code() == tonic::Code::ResourceExhausted => break,
            Err(status) => return Err(Failure::other(format!("a stream could not be opened: {status}"))),
        }
    }
    Ok(streams)
}

/// Connections that send whatever the service makes of it, each opened again when it is ended.
#[derive(Debug, Default)]
struct Floods {
    running: JoinSet<()>,
    sent: Arc<AtomicU64>,
    ended: Arc<AtomicU64>,
}

impl Floods {
    /// Each sends a burst of `frames` again and again; they are given an odd number that grows with each.
    fn start(&mut self, service: SocketAddr, frames: fn(u32) -> Vec<u8>) {
        for place in 0..FLOODING {
            let (sent, ended) = (Arc::clone(&self.sent), Arc::clone(&self.ended));
            self.running.spawn(async move {
                // One after the other: all at once would be one burst of all of them.
                tokio::time::sleep(PACE * place as u32 / FLOODING as u32).await;
                loop {
                    if flood(service, frames, &sent).await.is_err() {
                        ended.fetch_add(1, Relaxed);
                        tokio::time::sleep(PACE).await;
                    }
                }
            });
        }
    }

    /// Each sends one of the beginnings and waits to be ended.
    fn hold(&mut self, service: SocketAddr, beginnings: &[&[u8]]) {
        for beginning in beginnings.iter().cycle().take(HALF_OPEN) {
            let (beginning, ended) = (beginning.to_vec(), Arc::clone(&self.ended));
            self.running.spawn(async move {
                loop {
                    let Ok(mut socket) = connect(service).await else {
                        tokio::time::sleep(PACE).await;
                        continue;
                    };
                    let _ = socket.write_all(&beginning).await;
                    while socket.read(&mut [0; 4_096]).await.is_ok_and(|count| count > 0) {}
                    ended.fetch_add(1, Relaxed);
                    tokio::time::sleep(PACE).await;
                }
            });
        }
    }
}

/// From an address of its own, where the system has one.
async fn connect(service: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let _ = socket.bind((OWN_ADDRESS, 0).into());
    socket.connect(service).await
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_HEADERS: u8 = 4;

/// How a TLS handshake begins.
fn client_hello() -> Result<Vec<u8>, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::internal(format!("no ClientHello: {error}"));
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = "localhost".try_into().map_err(|error| failed(&error))?;
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(|error| failed(&error))?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).map_err(|error| failed(&error))?;
    Ok(hello)
}

/// Sends bursts until the service ends the connection.
async fn flood(service: SocketAddr, frames: fn(u32) -> Vec<u8>, sent: &AtomicU64) -> std::io::Result<()> {
    let mut socket = connect(service).await?;
    socket.write_all(PREFACE).await?;
    socket.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    let (mut from, mut to) = socket.into_split();
    let reading = async move {
        let mut unread = vec![0; 16 * 1024];
        while from.read(&mut unread).await? > 0 {}
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
    };
    let writing = async move {
        let mut number = 1;
        loop {
            let mut burst = Vec::new();
            for _ in 0..BURST {
                burst.extend(frames(number));
                number += 2;
            }
            to.write_all(&burst).await?;
            sent.fetch_add(BURST as u64, Relaxed);
            tokio::time::sleep(PACE).await;
        }
    };
    tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    }
}

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or_default().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(content);
    frame
}

/// A call of Publish, as far as its headers: of HPACK's static table, and literals that are kept in none.
fn call(stream: u32) -> Vec<u8> {
    const PATH: &[u8] = b"/hooklane.v1.WebhookService/Publish";
    const CONTENT_TYPE: &[u8] = b"application/grpc";
    let mut block = vec![0x83, 0x86, 0x04, PATH.len() as u8];
    block.extend_from_slice(PATH);
    block.extend_from_slice(b"\x01\x01x");
    block.extend_from_slice(&[0x0f, 0x10, CONTENT_TYPE.len() as u8]);
    block.extend_from_slice(CONTENT_TYPE);
    block.extend_from_slice(b"\x00\x02te\x08trailers");
    frame(HEADERS, END_HEADERS, stream, &block)
}

fn resets(stream: u32) -> Vec<u8> {
    const CANCEL: [u8; 4] = 8_u32.to_be_bytes();
    let mut frames = call(stream);
    frames.extend(frame(RST_STREAM, 0, stream, &CANCEL));
    frames
}

fn ping() -> Vec<u8> {
    frame(PING, 0, 0, &[0; 8])
}

/// A message that says it has 4 GiB.
fn oversized(stream: u32) -> Vec<u8> {
    let mut frames = call(stream);
    frames.extend(frame(DATA, 0, stream, &[0, 0xff, 0xff, 0xff, 0xff]));
    frames
}
