//! Operators and functions of CEL's standard library. Numbers of different types go together, because JSON does not
//! tell them apart: `event.data.price * 2` must not fail for a price without cents.

use std::cmp::Ordering;
use std::rc::Rc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::Failure;
use super::expr::{Binary, ClockPart, Function};
use super::run::{Outcome, Run};
use super::value::{Blob, List, Map, Text, Value};

const OVERFLOW: Failure = Failure::Unfit("a number gets too large, or is divided by nothing");
const NO_OPERATOR: Failure = Failure::Unfit("an operator stands between values that do not go together");
const NO_FUNCTION: Failure = Failure::Unfit("a function is called on a value that does not have it");
const NO_CONVERSION: Failure = Failure::Unfit("a value is converted that cannot be");
/// The longest text that is read as a number, a time or a span.
const READ_BYTES_MAX: usize = 64;

impl<'v> Run<'v> {
    pub(super) fn binary(&mut self, operator: Binary, left: Value<'v>, right: &Value<'v>) -> Outcome<Value<'v>> {
        match operator {
            Binary::Equal => self.equals(&left, right).map(Value::Bool),
            Binary::NotEqual => self.equals(&left, right).map(|same| Value::Bool(!same)),
            Binary::Less => self.order(&left, right, |order| order == Ordering::Less),
            Binary::LessOrEqual => self.order(&left, right, |order| order != Ordering::Greater),
            Binary::Greater => self.order(&left, right, |order| order == Ordering::Greater),
            Binary::GreaterOrEqual => self.order(&left, right, |order| order != Ordering::Less),
            Binary::In => self.is_in(&left, right),
            Binary::Add => self.add(left, right),
            Binary::Subtract => match (&left, right) {
                (Value::Time(a), Value::Time(b)) => Ok(Value::Span(a.duration_since(*b))),
                (Value::Time(time), Value::Span(span)) => {
                    time.checked_sub(*span).map(Value::Time).map_err(|_| OVERFLOW)
                }
                (Value::Span(a), Value::Span(b)) => a.checked_sub(*b).map(Value::Span).ok_or(OVERFLOW),
                _ => compute(&left, right, i64::checked_sub, u64::checked_sub, |a, b| a - b),
            },
            Binary::Multiply => compute(&left, right, i64::checked_mul, u64::checked_mul, |a, b| a * b),
            Binary::Divide => compute(&left, right, i64::checked_div, u64::checked_div, |a, b| a / b),
            Binary::Modulo => match (&left, right) {
                (Value::Double(_), _) | (_, Value::Double(_)) => Err(NO_OPERATOR),
                _ => compute(&left, right, i64::checked_rem, u64::checked_rem, |a, b| a % b),
            },
        }
    }

    fn add(&mut self, left: Value<'v>, right: &Value<'v>) -> Outcome<Value<'v>> {
        match (left, right) {
            (Value::Text(a), Value::Text(b)) => {
                self.spend_text(a.as_str().len() + b.as_str().len())?;
                Ok(Value::text([a.as_str(), b.as_str()].concat()))
            }
            (Value::Bytes(a), Value::Bytes(b)) => {
                self.spend_text(a.as_slice().len() + b.as_slice().len())?;
                Ok(Value::Bytes(Blob::Made([a.as_slice(), b.as_slice()].concat().into())))
            }
            (Value::List(a), Value::List(b)) => {
                self.spend(b.len())?;
                let mut items = match a {
                    List::Made(items) if Rc::strong_count(&items) == 1 => items,
                    other => {
                        self.spend(other.len())?;
                        Rc::new(other.iter().collect())
                    }
                };
                Rc::make_mut(&mut items).extend(b.iter());
                Ok(Value::List(List::Made(items)))
            }
            (Value::Time(time), Value::Span(span)) => time.checked_add(*span).map(Value::Time).map_err(|_| OVERFLOW),
            (Value::Span(span), Value::Time(time)) => time.checked_add(span).map(Value::Time).map_err(|_| OVERFLOW),
            (Value::Span(a), Value::Span(b)) => a.checked_add(*b).map(Value::Span).ok_or(OVERFLOW),
            (left, right) => compute(&left, right, i64::checked_add, u64::checked_add, |a, b| a + b),
        }
    }

    pub(super) fn negate(&mut self, of: &Value<'v>) -> Outcome<Value<'v>> {
        match of {
            Value::Int(int) => int.checked_neg().map(Value::Int).ok_or(OVERFLOW),
            Value::Double(double) => Ok(Value::Double(-double)),
            _ => Err(NO_OPERATOR),
        }
    }

    /// Nothing is before, after or the same as what is not a number.
    fn order(&mut self, left: &Value<'v>, right: &Value<'v>, is_so: fn(Ordering) -> bool) -> Outcome<Value<'v>> {
        let order = match (left, right) {
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (Value::Text(a), Value::Text(b)) => {
                self.spend_text(a.as_str().len().min(b.as_str().len()))?;
                Some(a.as_str().cmp(b.as_str()))
            }
            (Value::Bytes(a), Value::Bytes(b)) => {
                self.spend_text(a.as_slice().len().min(b.as_slice().len()))?;
                Some(a.as_slice().cmp(b.as_slice()))
            }
            (Value::Time(a), Value::Time(b)) => Some(a.cmp(b)),
            (Value::Span(a), Value::Span(b)) => Some(a.cmp(b)),
            (a, b) if a.is_number() && b.is_number() => a.compare_numbers(b),
            _ => return Err(NO_OPERATOR),
        };
        Ok(Value::Bool(order.is_some_and(is_so)))
    }

    fn is_in(&mut self, wanted: &Value<'v>, container: &Value<'v>) -> Outcome<Value<'v>> {
        match container {
            Value::List(list) => {
                for item in list.iter() {
                    if self.equals(&item, wanted)? {
                        return Ok(Value::Bool(true));
                    }
                }
                Ok(Value::Bool(false))
            }
            Value::Map(Map::Made(entries)) => {
                for (key, _) in entries.iter() {
                    if self.equals(key, wanted)? {
                        return Ok(Value::Bool(true));
                    }
                }
                Ok(Value::Bool(false))
            }
            Value::Map(Map::Of(entries)) => match wanted {
                Value::Text(name) => Ok(Value::Bool(entries.contains_key(name.as_str()))),
                _ => Ok(Value::Bool(false)),
            },
            _ => Err(NO_OPERATOR),
        }
    }

    /// `of.contains(with)` and its like.
    pub(super) fn look_into(&mut self, function: Function, of: &Value<'v>, with: &Value<'v>) -> Outcome<Value<'v>> {
        let (Value::Text(of), Value::Text(with)) = (of, with) else { return Err(NO_FUNCTION) };
        let (of, with) = (of.as_str(), with.as_str());
        Ok(Value::Bool(match function {
            Function::Contains => {
                self.spend_text(of.len() + with.len())?;
                of.contains(with)
            }
            Function::StartsWith => {
                self.spend_text(with.len())?;
                of.starts_with(with)
            }
            Function::EndsWith => {
                self.spend_text(with.len())?;
                of.ends_with(with)
            }
            _ => return Err(NO_FUNCTION),
        }))
    }

    /// A function of one value.
    pub(super) fn apply(&mut self, function: Function, of: Value<'v>) -> Outcome<Value<'v>> {
        match function {
            Function::Dyn => Ok(of),
            Function::Type => Ok(Value::Type(of.type_name())),
            Function::Size => self.size(&of),
            Function::Bool => match &of {
                Value::Bool(_) => Ok(of),
                Value::Text(text) => match text.as_str() {
                    "true" | "True" | "TRUE" | "t" | "1" => Ok(Value::Bool(true)),
                    "false" | "False" | "FALSE" | "f" | "0" => Ok(Value::Bool(false)),
                    _ => Err(NO_CONVERSION),
                },
                _ => Err(NO_CONVERSION),
            },
            Function::Int => to_int(&of),
            Function::UInt => to_uint(&of),
            Function::Double => to_double(&of),
            Function::String => self.text_of(of),
            Function::Bytes => match &of {
                Value::Bytes(_) => Ok(of),
                Value::Text(text) => {
                    self.spend_text(text.as_str().len())?;
                    Ok(Value::Bytes(Blob::Made(text.as_str().as_bytes().into())))
                }
                _ => Err(NO_CONVERSION),
            },
            Function::Timestamp => match &of {
                Value::Time(_) => Ok(of),
                Value::Int(seconds) => Timestamp::from_second(*seconds).map(Value::Time).map_err(|_| NO_CONVERSION),
                Value::Text(text) => read(text)?.parse().map(Value::Time).map_err(|_| NO_CONVERSION),
                _ => Err(NO_CONVERSION),
            },
            Function::Duration => match &of {
                Value::Span(_) => Ok(of),
                Value::Text(text) => parse_span(read(text)?).map(Value::Span).ok_or(NO_CONVERSION),
                _ => Err(NO_CONVERSION),
            },
            Function::Clock(part) => clock_part(part, &of).map(Value::Int).ok_or(NO_FUNCTION),
            Function::Contains | Function::StartsWith | Function::EndsWith => Err(NO_FUNCTION),
        }
    }

    fn size(&mut self, of: &Value<'v>) -> Outcome<Value<'v>> {
        let size = match of {
            Value::Text(text) => {
                self.spend_text(text.as_str().len())?;
                text.as_str().chars().count()
            }
            Value::Bytes(bytes) => bytes.as_slice().len(),
            Value::List(list) => list.len(),
            Value::Map(map) => map.len(),
            _ => return Err(NO_FUNCTION),
        };
        i64::try_from(size).map(Value::Int).map_err(|_| OVERFLOW)
    }

    fn text_of(&mut self, of: Value<'v>) -> Outcome<Value<'v>> {
        Ok(match &of {
            Value::Text(_) => of,
            Value::Bool(truth) => Value::text(truth.to_string()),
            Value::Int(int) => Value::text(int.to_string()),
            Value::UInt(uint) => Value::text(uint.to_string()),
            Value::Double(double) => Value::text(double.to_string()),
            Value::Bytes(bytes) => {
                self.spend_text(bytes.as_slice().len())?;
                let text = std::str::from_utf8(bytes.as_slice()).map_err(|_| NO_CONVERSION)?;
                Value::Text(Text::Made(text.into()))
            }
            Value::Time(time) => Value::text(time.to_string()),
            Value::Span(span) => Value::text(format!("{}s", span.as_secs_f64())),
            _ => return Err(NO_CONVERSION),
        })
    }
}

/// Arithmetic on two numbers: of one type in it, of different ones in the wider.
fn compute<'v>(
    left: &Value<'v>,
    right: &Value<'v>,
    ints: fn(i64, i64) -> Option<i64>,
    uints: fn(u64, u64) -> Option<u64>,
    doubles: fn(f64, f64) -> f64,
) -> Outcome<Value<'v>> {
    match (left, right) {
        (Value::Int(a), Value::Int(b)) => ints(*a, *b).map(Value::Int).ok_or(OVERFLOW),
        (Value::UInt(a), Value::UInt(b)) => uints(*a, *b).map(Value::UInt).ok_or(OVERFLOW),
        (Value::Int(a), Value::UInt(b)) => narrow(*b).and_then(|b| ints(*a, b)).map(Value::Int).ok_or(OVERFLOW),
        (Value::UInt(a), Value::Int(b)) => narrow(*a).and_then(|a| ints(a, *b)).map(Value::Int).ok_or(OVERFLOW),
        (a, b) if a.is_number() && b.is_number() => Ok(Value::Double(doubles(widen(a), widen(b)))),
        _ => Err(NO_OPERATOR),
    }
}

fn narrow(uint: u64) -> Option<i64> {
    i64::try_from(uint).ok()
}

fn widen(number: &Value<'_>) -> f64 {
    match number {
        Value::Int(int) => *int as f64,
        Value::UInt(uint) => *uint as f64,
        Value::Double(double) => *double,
        _ => f64::NAN,
    }
}

fn to_int<'v>(of: &Value<'v>) -> Outcome<Value<'v>> {
    let int = match of {
        Value::Int(int) => Some(*int),
        Value::UInt(uint) => narrow(*uint),
        // Both bounds are exact as doubles; the upper one is the first that does not fit.
        Value::Double(double) if (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(double) => {
            Some(*double as i64)
        }
        Value::Text(text) => read(text)?.parse().ok(),
        Value::Time(time) => Some(time.as_second()),
        _ => None,
    };
    int.map(Value::Int).ok_or(NO_CONVERSION)
}

fn to_uint<'v>(of: &Value<'v>) -> Outcome<Value<'v>> {
    let uint = match of {
        Value::UInt(uint) => Some(*uint),
        Value::Int(int) => u64::try_from(*int).ok(),
        Value::Double(double) if (0.0..18_446_744_073_709_551_616.0).contains(double) => Some(*double as u64),
        Value::Text(text) => read(text)?.parse().ok(),
        _ => None,
    };
    uint.map(Value::UInt).ok_or(NO_CONVERSION)
}

fn to_double<'v>(of: &Value<'v>) -> Outcome<Value<'v>> {
    match of {
        number if number.is_number() => Ok(Value::Double(widen(number))),
        Value::Text(text) => read(text)?.parse().map(Value::Double).map_err(|_| NO_CONVERSION),
        _ => Err(NO_CONVERSION),
    }
}

/// A text that is short enough to be read as something else.
fn read<'t>(text: &'t Text<'_>) -> Outcome<&'t str> {
    Some(text.as_str()).filter(|text| text.len() <= READ_BYTES_MAX).ok_or(NO_CONVERSION)
}

/// `1h30m`, `-1.5s`, `250ms`: CEL's spans, which are Go's.
fn parse_span(text: &str) -> Option<SignedDuration> {
    let (is_negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut nanos = 0.0;
    let mut is_empty = true;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        nanos += number
            * match &rest[..unit] {
                "h" => 3_600e9,
                "m" => 60e9,
                "s" => 1e9,
                "ms" => 1e6,
                "us" | "µs" => 1e3,
                "ns" => 1.0,
                _ => return None,
            };
        rest = &rest[unit..];
        is_empty = false;
    }
    // Ten thousand years, as in the specification.
    let is_good = !is_empty && nanos <= 315_576_000_000e9;
    let span = SignedDuration::try_from_secs_f64(nanos / 1e9).ok().filter(|_| is_good)?;
    Some(if is_negative { -span } else { span })
}

/// A part of a time in UTC, or of a span as a whole; months and days count from 0 but `getDate`.
fn clock_part(part: ClockPart, of: &Value<'_>) -> Option<i64> {
    let time = match of {
        Value::Span(span) => {
            return match part {
                ClockPart::Hours => Some(span.as_secs() / 3_600),
                ClockPart::Minutes => Some(span.as_secs() / 60),
                ClockPart::Seconds => Some(span.as_secs()),
                ClockPart::Milliseconds => Some(i64::from(span.subsec_millis())),
                _ => None,
            };
        }
        Value::Time(time) => time.to_zoned(TimeZone::UTC),
        _ => return None,
    };
    Some(match part {
        ClockPart::FullYear => time.year().into(),
        ClockPart::Month => i64::from(time.month()) - 1,
        ClockPart::Date => time.day().into(),
        ClockPart::DayOfMonth => i64::from(time.day()) - 1,
        ClockPart::DayOfWeek => time.weekday().to_sunday_zero_offset().into(),
        ClockPart::DayOfYear => i64::from(time.day_of_year()) - 1,
        ClockPart::Hours => time.hour().into(),
        ClockPart::Minutes => time.minute().into(),
        ClockPart::Seconds => time.second().into(),
        ClockPart::Milliseconds => time.millisecond().into(),
    })
}
