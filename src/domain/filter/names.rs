//! The names that a filter may use, and the words for those it may not.

use cel::common::ast::operators;

use super::expr::{Binary, ClockPart, Fact, Function};

pub(super) const FACTS: &str = "there are event.type, event.tenant, event.data and event.metadata";

pub(super) fn fact(field: &str) -> Option<Fact> {
    match field {
        "type" => Some(Fact::Type),
        "tenant" => Some(Fact::Tenant),
        "data" => Some(Fact::Data),
        "metadata" => Some(Fact::Metadata),
        _ => None,
    }
}

pub(super) fn binary(name: &str) -> Option<Binary> {
    Some(match name {
        operators::ADD => Binary::Add,
        operators::SUBSTRACT => Binary::Subtract,
        operators::MULTIPLY => Binary::Multiply,
        operators::DIVIDE => Binary::Divide,
        operators::MODULO => Binary::Modulo,
        operators::EQUALS => Binary::Equal,
        operators::NOT_EQUALS => Binary::NotEqual,
        operators::LESS => Binary::Less,
        operators::LESS_EQUALS => Binary::LessOrEqual,
        operators::GREATER => Binary::Greater,
        operators::GREATER_EQUALS => Binary::GreaterOrEqual,
        operators::IN => Binary::In,
        _ => return None,
    })
}

/// How a function is called.
pub(super) enum Form {
    /// `f(x)` or `x.f()`.
    Either,
    /// `f(x)`.
    Global,
    /// `x.f(…)` with that many arguments.
    Method(usize),
}

pub(super) const FUNCTIONS: [(&str, Function, Form); 24] = [
    ("size", Function::Size, Form::Either),
    ("contains", Function::Contains, Form::Method(1)),
    ("startsWith", Function::StartsWith, Form::Method(1)),
    ("endsWith", Function::EndsWith, Form::Method(1)),
    ("int", Function::Int, Form::Global),
    ("uint", Function::UInt, Form::Global),
    ("double", Function::Double, Form::Global),
    ("string", Function::String, Form::Global),
    ("bytes", Function::Bytes, Form::Global),
    ("bool", Function::Bool, Form::Global),
    ("type", Function::Type, Form::Global),
    ("dyn", Function::Dyn, Form::Global),
    ("timestamp", Function::Timestamp, Form::Global),
    ("duration", Function::Duration, Form::Global),
    ("getFullYear", Function::Clock(ClockPart::FullYear), Form::Method(0)),
    ("getMonth", Function::Clock(ClockPart::Month), Form::Method(0)),
    ("getDate", Function::Clock(ClockPart::Date), Form::Method(0)),
    ("getDayOfMonth", Function::Clock(ClockPart::DayOfMonth), Form::Method(0)),
    ("getDayOfWeek", Function::Clock(ClockPart::DayOfWeek), Form::Method(0)),
    ("getDayOfYear", Function::Clock(ClockPart::DayOfYear), Form::Method(0)),
    ("getHours", Function::Clock(ClockPart::Hours), Form::Method(0)),
    ("getMinutes", Function::Clock(ClockPart::Minutes), Form::Method(0)),
    ("getSeconds", Function::Clock(ClockPart::Seconds), Form::Method(0)),
    ("getMilliseconds", Function::Clock(ClockPart::Milliseconds), Form::Method(0)),
];

pub(super) fn unknown_function(name: &str) -> String {
    // What is still a call has other arguments than the macro takes.
    match name {
        "has" => "has is called otherwise; allowed is has(x.field)".to_owned(),
        "all" | "exists" | "exists_one" | "filter" => {
            format!("{name} is called otherwise; allowed is x.{name}(variable, condition)")
        }
        "map" => "map is called otherwise; allowed is x.map(variable, value)".to_owned(),
        "matches" => "matches is called otherwise; allowed is x.matches('regular expression')".to_owned(),
        _ => {
            let known: Vec<&str> = FUNCTIONS.iter().map(|(known, ..)| *known).collect();
            format!(
                "there is no function {name}; there are has, all, exists, exists_one, map, filter, matches, {}",
                known.join(", ")
            )
        }
    }
}
