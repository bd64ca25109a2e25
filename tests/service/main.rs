//! The whole service and its parts on a real PostgreSQL and real receivers.

mod plans;
mod publish;
mod delivery;
mod queue;
mod support;
