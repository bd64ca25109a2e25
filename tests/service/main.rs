//! The whole service and its parts on a real PostgreSQL and real receivers.

mod api;
mod connections;
mod delivery;
mod filters;
mod gates;
mod healthy;
mod lists;
mod offers;
mod order;
mod plans;
mod publish;
mod queue;
mod replicas;
mod support;
mod tail;
