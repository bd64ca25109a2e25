//! A link to PostgreSQL that fails as networks do: it swallows what is sent without a word, or loses a reply.
//!
//! What was swallowed never arrives, so a connection that met it is dead for good, also when the link works again; and
//! nobody is told. New connections are accepted in silence meanwhile, as good as a packet without an answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// A running link.
pub(crate) struct Proxy {
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    socket: PathBuf,
    /// Whether everything is swallowed.
    is_silent: watch::Sender<bool>,
    /// Replies to a commit that are still to be lost.
    to_lose: AtomicUsize,
    lost: AtomicUsize,
}

impl Proxy {
    /// Starts a link to the database of that name of the server with its socket in that directory.
    pub(crate) async fn start(socket_dir: &Path, database: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let url = format!("postgres://{}@{address}/{database}?sslmode=disable", hooklane::cli::postgres::USER);
        let shared = Arc::new(Shared {
            socket: socket_dir.join(".s.PGSQL.5432"),
            is_silent: watch::Sender::new(false),
            to_lose: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&accepting).carry(client));
            }
        });
        Self { url, shared }
    }

    /// Where the database is found through it.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Swallows everything from now on, in both directions.
    pub(crate) fn go_silent(&self) {
        self.shared.is_silent.send_replace(true);
    }

    /// Carries new connections again.
    pub(crate) fn come_back(&self) {
        self.shared.is_silent.send_replace(false);
    }

    /// Loses the reply to the next `count` commits: they are carried out, and the connection ends instead of telling.
    pub(crate) fn lose_replies(&self, count: usize) {
        self.shared.to_lose.fetch_add(count, Ordering::AcqRel);
    }

    /// How many replies were lost.
    pub(crate) fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::Acquire)
    }
}

/// The message in which a client commits: a simple query.
const COMMIT: &[u8] = b"COMMIT\0";

impl Shared {
    async fn carry(self: Arc<Self>, client: TcpStream) {
        let mut silence = self.is_silent.subscribe();
        // A connection asked for in silence gets nowhere, not even later.
        if *silence.borrow_and_update() {
            return swallow(client).await;
        }
        let Ok(server) = UnixStream::connect(&self.socket).await else { return };
        let _ = client.set_nodelay(true);
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let is_committing = AtomicBool::new(false);
        let outward = async {
            let mut chunk = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from_client.read(&mut chunk).await {
                let is_commit = chunk[..count].windows(COMMIT.len()).any(|window| window == COMMIT);
                if is_commit && self.takes_one_to_lose() {
                    is_committing.store(true, Ordering::Release);
                }
                if to_server.write_all(&chunk[..count]).await.is_err() {
                    return;
                }
            }
        };
        let inward = async {
            let mut chunk = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from_server.read(&mut chunk).await {
                // The server has answered, so it is committed.
                if is_committing.load(Ordering::Acquire) {
                    self.lost.fetch_add(1, Ordering::AcqRel);
                    return;
                }
                if to_client.write_all(&chunk[..count]).await.is_err() {
                    return;
                }
            }
        };
        let is_cut = tokio::select! {
            () = outward => false,
            () = inward => false,
            _ = silence.changed() => true,
        };
        if is_cut {
            let client = to_client.reunite(from_client).expect("halves of one");
            // The server, too, learns nothing of a client that gives up, until the link works again.
            let _server = (from_server, to_server);
            tokio::join!(swallow(client), async { silence.wait_for(|is_silent| !is_silent).await.is_ok() });
        }
    }

    fn takes_one_to_lose(&self) -> bool {
        self.to_lose.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).is_ok()
    }
}

/// Reads until the client gives up, and answers nothing.
async fn swallow(mut client: TcpStream) {
    let mut chunk = vec![0; 4 << 10];
    while let Ok(1..) = client.read(&mut chunk).await {}
}
