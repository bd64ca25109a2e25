//! Values while a filter runs: parts of the event are borrowed, only what the filter makes is its own.

use std::cmp::Ordering;
use std::rc::Rc;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value as Json;

/// A value.
#[derive(Debug, Clone)]
pub(super) enum Value<'v> {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Double(f64),
    Text(Text<'v>),
    Bytes(Blob<'v>),
    List(List<'v>),
    Map(Map<'v>),
    Time(Timestamp),
    Span(SignedDuration),
    Type(&'static str),
}

#[derive(Debug, Clone)]
pub(super) enum Text<'v> {
    Of(&'v str),
    Made(Rc<str>),
}

#[derive(Debug, Clone)]
pub(super) enum Blob<'v> {
    Of(&'v [u8]),
    Made(Rc<[u8]>),
}

#[derive(Debug, Clone)]
pub(super) enum List<'v> {
    Of(&'v [Json]),
    Made(Rc<Vec<Value<'v>>>),
}

#[derive(Debug, Clone)]
pub(super) enum Map<'v> {
    Of(&'v serde_json::Map<String, Json>),
    /// Of a map in the filter's own text: few entries, looked through one by one.
    Made(Rc<Vec<(Value<'v>, Value<'v>)>>),
}

impl<'v> From<&'v Json> for Value<'v> {
    /// A number without fraction is an integer, whatever its sign: JSON tells no other difference.
    fn from(json: &'v Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(int), _) => Self::Int(int),
                (None, Some(uint)) => Self::UInt(uint),
                (None, None) => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::Text(Text::Of(text)),
            Json::Array(items) => Self::List(List::Of(items)),
            Json::Object(entries) => Self::Map(Map::Of(entries)),
        }
    }
}

impl Value<'_> {
    pub(super) fn text(made: String) -> Self {
        Self::Text(Text::Made(made.into()))
    }

    /// The name of its type.
    pub(super) const fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::UInt(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Time(_) => "timestamp",
            Self::Span(_) => "duration",
            Self::Type(_) => "type",
        }
    }

    /// Compares two numbers exactly, whatever their types; `None` where one is no number, or not a number.
    pub(super) fn compare_numbers(&self, other: &Self) -> Option<Ordering> {
        match (self.integer(), other.integer()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            (Some(a), None) => compare_to_double(a, other.double()?),
            (None, Some(b)) => compare_to_double(b, self.double()?).map(Ordering::reverse),
            (None, None) => self.double()?.partial_cmp(&other.double()?),
        }
    }

    pub(super) const fn is_number(&self) -> bool {
        matches!(self, Self::Int(_) | Self::UInt(_) | Self::Double(_))
    }

    fn integer(&self) -> Option<i128> {
        match self {
            Self::Int(int) => Some(i128::from(*int)),
            Self::UInt(uint) => Some(i128::from(*uint)),
            _ => None,
        }
    }

    const fn double(&self) -> Option<f64> {
        match self {
            Self::Double(double) => Some(*double),
            _ => None,
        }
    }
}

/// An integer beside a double, without rounding either. The cast saturates, so that infinities are beyond every integer.
fn compare_to_double(integer: i128, double: f64) -> Option<Ordering> {
    if double.is_nan() {
        return None;
    }
    let floor = double.floor();
    let ordering = integer.cmp(&(floor as i128));
    Some(if ordering == Ordering::Equal && double > floor { Ordering::Less } else { ordering })
}

impl Text<'_> {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Of(text) => text,
            Self::Made(text) => text,
        }
    }
}

impl Blob<'_> {
    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Of(bytes) => bytes,
            Self::Made(bytes) => bytes,
        }
    }
}

impl<'v> List<'v> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Of(items) => items.len(),
            Self::Made(items) => items.len(),
        }
    }

    pub(super) fn get(&self, place: usize) -> Option<Value<'v>> {
        match self {
            Self::Of(items) => items.get(place).map(Value::from),
            Self::Made(items) => items.get(place).cloned(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Value<'v>> {
        (0..self.len()).filter_map(|place| self.get(place))
    }
}

impl<'v> Map<'v> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Of(entries) => entries.len(),
            Self::Made(entries) => entries.len(),
        }
    }

    /// The keys, in an order that stays the same.
    pub(super) fn keys(&self) -> Vec<Value<'v>> {
        match self {
            Self::Of(entries) => entries.keys().map(|key| Value::Text(Text::Of(key))).collect(),
            Self::Made(entries) => entries.iter().map(|(key, _)| key.clone()).collect(),
        }
    }
}
