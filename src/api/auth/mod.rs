//! Who calls: credentials, what each call needs, and whose things a caller may touch.
//!
//! `layer` stands before every call and lets in who may make it, before the body is read; `caller` is what the calls
//! ask of whoever was let in. Nothing here knows what a call does.

mod caller;
mod door;
mod keys;
mod layer;
mod names;
mod quota;
mod rules;
mod watched;

pub(super) use self::caller::{Caller, admitted};
pub(super) use self::door::Door;
pub(super) use self::layer::Guard;
pub use self::names::{CertificateName, ClientRule};
pub use self::quota::CallerLimits;
pub(super) use self::rules::Method;
#[cfg(test)]
pub(super) use self::tests::admin;

/// How callers show who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nobody is asked.
    None,
    /// By `authorization: Bearer hlk_…`.
    ApiKey,
    /// By the certificate of their connection.
    Mtls,
}

#[cfg(test)]
mod tests {
    use super::Caller;

    /// A caller who may do everything.
    pub(in crate::api) fn admin() -> Caller {
        Caller::anyone()
    }
}
