//! The commands, and what only they need. Nothing in the service itself uses this module.

pub mod postgres;
