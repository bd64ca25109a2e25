//! The gRPC edge: the only place that knows the contract's messages.
//!
//! Here requests become domain values and outcomes become answers and statuses. No rule of webhook delivery lives here
//! and no SQL: `convert` translates, `status` is the one place where an error becomes a gRPC status.

mod alerts;
mod auth;
mod codec;
mod connection;
mod convert;
mod dead_letters;
mod deliveries;
mod direct;
mod endpoints;
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod limits;
mod measured;
mod paging;
mod pausing;
mod publish;
mod replays;
mod secrets;
mod server;
mod service;
mod serving;
mod shown;
mod stats;
mod status;
mod stream;
mod testing;
mod tls;
mod under_way;

pub use self::auth::{CallerLimits, CertificateName, ClientRule, Mode as Auth};
pub use self::health::Health;
pub use self::server::{Config, Edge, Services, serve};
pub use self::tls::{Config as TlsConfig, Error as TlsError, Tls};

/// The contract as prost and tonic generate it, clients included.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code keeps its own style")]
pub mod proto {
    tonic::include_proto!("hooklane.v1");

    /// Every message and service above with what they import, as an encoded `FileDescriptorSet`.
    pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("hooklane");
}
