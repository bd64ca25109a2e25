//! What a filter is compiled to: every name resolved, every regular expression built, every depth bounded.

use regex::Regex;

/// A compiled filter.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) root: Expr,
    /// How many variables of macros there are at once.
    pub(super) slots: usize,
}

#[derive(Debug)]
pub(super) enum Expr {
    Literal(Literal),
    Fact(Fact),
    /// A variable of a macro, or what the macro gathers.
    Slot(usize),
    Select(Box<Expr>, Box<str>),
    Has(Box<Expr>, Box<str>),
    Index(Box<[Expr; 2]>),
    Not(Box<Expr>),
    Negate(Box<Expr>),
    And(Box<[Expr; 2]>),
    Or(Box<[Expr; 2]>),
    If(Box<[Expr; 3]>),
    Binary(Binary, Box<[Expr; 2]>),
    /// False only where the expression is false: an error does not end a loop.
    IsNotFalse(Box<Expr>),
    Call(Function, Vec<Expr>),
    Matches(Box<Expr>, Regex),
    List(Vec<Expr>),
    Map(Vec<[Expr; 2]>),
    Fold(Box<Fold>),
}

#[derive(Debug)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Double(f64),
    Text(Box<str>),
    Bytes(Box<[u8]>),
    Type(&'static str),
}

/// A field of `event`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fact {
    Type,
    Tenant,
    Data,
    Metadata,
}

/// What the macros `all`, `exists`, `exists_one`, `map` and `filter` become.
#[derive(Debug)]
pub(super) struct Fold {
    pub(super) range: Expr,
    pub(super) variable: usize,
    pub(super) gathered: usize,
    pub(super) first: Expr,
    pub(super) condition: Expr,
    pub(super) step: Expr,
    pub(super) result: Expr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Int,
    UInt,
    Double,
    String,
    Bytes,
    Bool,
    Type,
    Dyn,
    Timestamp,
    Duration,
    Clock(ClockPart),
}

/// A part of a time, in UTC, or of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClockPart {
    FullYear,
    Month,
    Date,
    DayOfMonth,
    DayOfWeek,
    DayOfYear,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}
