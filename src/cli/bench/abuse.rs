//! Scenario `abuse`: what well-behaved callers notice of others who hold thousands of streams, or flood the port with
//! frames that cost their sender nothing.
//!
//! Frames are written by hand: no client library sends what these do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::Streaming;

use super::callers::{self, Audience};
use super::cluster::Cluster;
use super::measure::{self, FixedRate};
use super::stage::Stage;
use super::{Args, progress, usage};
use crate::api::proto::{Ordering, StreamDeliveryEventsRequest, StreamDeliveryEventsResponse};
use crate::cli::Failure;

const IDLE_STREAMS: usize = 10_000;
/// Streams of one connection: fewer than the server admits.
const STREAMS_OF_ONE: usize = 500;
/// Connections that flood at once.
const FLOODING: usize = 8;
/// Connections that say nothing, or half of a greeting.
const HALF_OPEN: usize = 500;
/// Between two bursts of one flooding connection, and the frames of a burst: 16,000 frames a second in all. More would
/// measure what is left of two processors to the callers.
const PACE: Duration = Duration::from_millis(50);
const BURST: usize = 100;

/// What it measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct AbuseReport {
    pub(super) alone: FixedRate,
    pub(super) rss_alone_mb: f64,
    pub(super) attacks: Vec<Attack>,
}

/// The callers beside one kind of abuse.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Attack {
    pub(super) name: &'static str,
    pub(super) callers: FixedRate,
    /// Their p99 over that without.
    pub(super) p99_ratio: f64,
    /// The service's peak.
    pub(super) rss_mb: f64,
    /// Streams that it holds.
    pub(super) held: usize,
    /// Connections that it ended because of what they sent, or did not send.
    pub(super) ended: u64,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    IdleStreams,
    RapidResets,
    Pings,
    Oversized,
    HalfOpen,
}

impl Kind {
    const ALL: [Self; 5] = [Self::IdleStreams, Self::RapidResets, Self::Pings, Self::Oversized, Self::HalfOpen];

    const fn name(self) -> &'static str {
        match self {
            Self::IdleStreams => "idle streams",
            Self::RapidResets => "rapid resets",
            Self::Pings => "ping flood",
            Self::Oversized => "oversized lengths",
            Self::HalfOpen => "half-open connections",
        }
    }
}

pub(super) async fn run(cluster: &Cluster, args: &Args) -> Result<AbuseReport, Failure> {
    let mut stage = Stage::set(cluster, "abuse").await?;
    stage.register(args, 1, 0, Ordering::Unordered).await?;
    progress("abuse: nobody else");
    let alone = measure::fixed_rate(&mut stage, args, &Audience::Everyone, args.rate).await?;
    let rss_alone_mb = stage.peak_rss_mb();
    let mut attacks = Vec::new();
    for kind in Kind::ALL {
        progress(&format!("abuse: {}", kind.name()));
        // Its peak begins anew.
        stage.renew_service().await?;
        let (streams, floods) = begin(&stage, kind).await?;
        let callers = measure::fixed_rate(&mut stage, args, &Audience::Everyone, args.rate).await?;
        attacks.push(Attack {
            name: kind.name(),
            p99_ratio: callers.latency.p99_ms / alone.latency.p99_ms,
            callers,
            rss_mb: usage::peak_rss_mb(stage.service.pid()),
            held: streams.len(),
            ended: floods.ended.load(Relaxed),
        });
        drop((streams, floods));
    }
    stage.strike().await?;
    Ok(AbuseReport { alone, rss_alone_mb, attacks })
}

type Streams = Vec<Streaming<StreamDeliveryEventsResponse>>;

async fn begin(stage: &Stage<'_>, kind: Kind) -> Result<(Streams, Floods), Failure> {
    let (service, mut floods) = (stage.service.grpc(), Floods::default());
    match kind {
        Kind::IdleStreams => return Ok((hold_streams(service).await?, floods)),
        Kind::RapidResets => floods.start(service, FLOODING, resets),
        Kind::Pings => floods.start(service, FLOODING, |_| ping()),
        Kind::Oversized => floods.start(service, FLOODING, oversized),
        Kind::HalfOpen => floods.hold(service),
    }
    Ok((Vec::new(), floods))
}

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
    ended: Arc<AtomicU64>,
}

impl Floods {
    /// Each sends a burst of `frames` again and again; they are given an odd number that grows with each.
    fn start(&mut self, service: SocketAddr, connections: usize, frames: fn(u32) -> Vec<u8>) {
        for _ in 0..connections {
            let ended = Arc::clone(&self.ended);
            self.running.spawn(async move {
                loop {
                    if flood(service, frames).await.is_err() {
                        ended.fetch_add(1, Relaxed);
                        tokio::time::sleep(PACE).await;
                    }
                }
            });
        }
    }

    /// Each sends half of a greeting, every other one nothing, and waits to be ended.
    fn hold(&mut self, service: SocketAddr) {
        for place in 0..HALF_OPEN {
            let ended = Arc::clone(&self.ended);
            self.running.spawn(async move {
                loop {
                    let Ok(mut socket) = TcpStream::connect(service).await else {
                        tokio::time::sleep(PACE).await;
                        continue;
                    };
                    let greeting = if place % 2 == 0 { &PREFACE[..PREFACE.len() / 2] } else { &[] };
                    let _ = socket.write_all(greeting).await;
                    while socket.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {}
                    ended.fetch_add(1, Relaxed);
                    tokio::time::sleep(PACE).await;
                }
            });
        }
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_HEADERS: u8 = 4;

/// Sends bursts until the service ends the connection.
async fn flood(service: SocketAddr, frames: fn(u32) -> Vec<u8>) -> std::io::Result<()> {
    let mut socket = TcpStream::connect(service).await?;
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
