//! How commands show things to people: colour (`paint`), tables and lists of fields (`table`), times, spans and names
//! (`words`).
//!
//! What others wrote reaches a terminal here: control characters never pass.

mod paint;
mod table;
mod words;

pub(super) use self::paint::{Paint, Palette};
pub(super) use self::table::{Cell, Column, Fields, Table};
pub(super) use self::words::{count, counted, instant, option, share, short, span, time, time_of_day, visible, word};
