//! A receiver that has every request on disk before it answers: what it answered is certain to have arrived, whatever
//! dies around it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use hooklane::api::proto::{CircuitBreaker, Endpoint, RegisterEndpointRequest};
use hooklane::domain::endpoint::SignatureScheme;
use hooklane::domain::verification::{Verifier, verify};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::load::Client;
use crate::program::text_of;

/// What its endpoint signs with.
const SECRET: &str = "a-secret-of-the-receiver-that-keeps-a-record";

/// How requests are answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answers {
    /// How long an answer takes, so that requests are under way whenever something fails.
    pub(crate) delay: Duration,
    /// No answer until it is told to answer in another way.
    pub(crate) is_silent: bool,
    /// 503 to so many attempts of each delivery.
    pub(crate) fail_first: u32,
}

impl Answers {
    /// 200 after a moment.
    pub(crate) const BUSY: Self = Self { delay: Duration::from_millis(30), is_silent: false, fail_first: 0 };
    /// Not now.
    pub(crate) const SILENT: Self = Self { is_silent: true, ..Self::BUSY };
}

/// A request as it stands in the record.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    /// 1, 2, …
    pub(crate) attempt: u32,
    /// Since the epoch, by this machine's clock.
    pub(crate) at: Duration,
    /// The seconds of its `X-Webhook-Timestamp`.
    pub(crate) told: u64,
    /// Whether its signature is right, and its signed time within 5 min of now.
    pub(crate) is_verified: bool,
}

/// The receiver and its record.
pub(crate) struct Record {
    url: String,
    file: File,
    shared: Arc<Shared>,
}

struct Shared {
    verifier: Verifier,
    answers: watch::Sender<Answers>,
    count: AtomicUsize,
    lines: mpsc::Sender<Line>,
}

/// A line, and who waits for it to be on disk.
type Line = (String, oneshot::Sender<()>);

impl Record {
    /// Starts to receive.
    pub(crate) async fn start() -> Self {
        let file = tempfile::tempfile().expect("a file");
        let (lines, written) = mpsc::channel();
        let writing = file.try_clone().expect("a handle");
        std::thread::spawn(move || write(&writing, &written));
        let shared = Arc::new(Shared {
            verifier: Verifier::parse(SECRET, Some(SignatureScheme::Timestamped)).expect("a secret"),
            answers: watch::Sender::new(Answers::BUSY),
            count: AtomicUsize::new(0),
            lines,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let router = Router::new().fallback(receive).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, file, shared }
    }

    /// Registers it as the endpoint of all events.
    pub(crate) async fn register(&self, client: &mut Client) {
        // What it fails, it fails on purpose, and none of that is to hold up the rest.
        let circuit_breaker = Some(CircuitBreaker { failure_threshold: Some(0), ..CircuitBreaker::default() });
        let endpoint = Endpoint { url: self.url.clone(), circuit_breaker, ..Endpoint::default() };
        let request = RegisterEndpointRequest { endpoint: Some(endpoint), secret: SECRET.to_owned() };
        client.register_endpoint(request).await.expect("registered");
    }

    /// Answers in another way from now on; also what waits in silence.
    pub(crate) fn answer(&self, answers: Answers) {
        self.shared.answers.send_replace(answers);
    }

    /// How many requests are on disk.
    pub(crate) fn count(&self) -> usize {
        self.shared.count.load(Ordering::Acquire)
    }

    /// Everything that arrived, by delivery, read back from the disk.
    pub(crate) fn arrivals(&self) -> HashMap<String, Vec<Arrival>> {
        let mut arrivals: HashMap<String, Vec<Arrival>> = HashMap::new();
        for line in text_of(&self.file).lines() {
            let words: Vec<_> = line.split(' ').collect();
            let [delivery, attempt, at, told, verdict] = words[..] else { panic!("{line:?}") };
            arrivals.entry(delivery.to_owned()).or_default().push(Arrival {
                attempt: attempt.parse().expect("a number"),
                at: Duration::from_micros(at.parse().expect("microseconds")),
                told: told.parse().expect("seconds"),
                is_verified: verdict == "verified",
            });
        }
        arrivals
    }
}

/// Appends whatever has gathered and has it on disk before anybody who waits for it is told.
fn write(file: &File, lines: &mpsc::Receiver<Line>) {
    let mut output = BufWriter::new(file);
    while let Ok(first) = lines.recv() {
        let gathered: Vec<Line> = std::iter::once(first).chain(lines.try_iter()).collect();
        for (line, _) in &gathered {
            output.write_all(line.as_bytes()).expect("written");
        }
        output.flush().and_then(|()| file.sync_data()).expect("on disk");
        for (_, waiting) in gathered {
            // A caller that was killed meanwhile waits for nothing.
            let _ = waiting.send(());
        }
    }
}

async fn receive(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    #[expect(clippy::disallowed_methods, reason = "a receiver has no clock but its machine's")]
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let now = i64::try_from(at.as_secs()).expect("seconds");
    let verified = verify(SignatureScheme::Timestamped, &shared.verifier, header, &body, now);
    let delivery = header("x-webhook-id").expect("an id").to_owned();
    let attempt: u32 = header("x-webhook-attempt").and_then(|text| text.parse().ok()).expect("a number");
    let told = header("x-webhook-timestamp").expect("a time");
    let verdict = if verified.is_ok() { "verified" } else { "refused" };
    let line = format!("{delivery} {attempt} {} {told} {verdict}\n", at.as_micros());
    let (waiting, on_disk) = oneshot::channel();
    shared.lines.send((line, waiting)).expect("a writer");
    on_disk.await.expect("written");
    shared.count.fetch_add(1, Ordering::AcqRel);
    let mut changes = shared.answers.subscribe();
    let answers = *changes.wait_for(|answers| !answers.is_silent).await.expect("it answers");
    tokio::time::sleep(answers.delay).await;
    if attempt <= answers.fail_first { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}
