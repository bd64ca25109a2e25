//! Hooklane: webhook delivery over gRPC and PostgreSQL. See ARCHITECTURE.md for the map.

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod domain;
pub mod egress;
pub mod engine;
pub mod live;
pub mod ops;
pub mod store;
pub mod telemetry;
