//! From text to a [`Program`]: the crate's grammar, then our names, types as far as they show, and depth.

use std::fmt;
use std::thread;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr as Parsed, LiteralValue, SourceInfo, operators};
use cel::parser::Parser;
use regex::RegexBuilder;

use super::expr::{Binary, Expr, Fact, Fold, Function, Literal, Program};
use super::names::{FACTS, FUNCTIONS, Form, binary, fact, unknown_function};

/// How deep brackets may be nested, and an expression in all.
const BRACKETS_MAX: usize = 24;
const DEPTH_MAX: usize = 128;
/// The parser descends some ten frames for each bracket.
const PARSER_STACK_BYTES: usize = 32 * 1024 * 1024;
/// How many regular expressions a filter may have, how large each may get, and what it may remember of its work:
/// enough for Unicode's classes.
const REGEXES_MAX: usize = 4;
const REGEX_BYTES_MAX: usize = 128 * 1024;
const REGEX_MEMORY_BYTES_MAX: usize = 256 * 1024;
/// How much of the parser's words is shown.
const WORDS_MAX: usize = 200;

/// What is wrong, and where.
#[derive(Debug)]
pub(super) struct Fault {
    /// Line and column, from 1 on.
    at: Option<(usize, usize)>,
    words: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.at {
            write!(f, "line {line}, column {column}: ")?;
        }
        f.write_str(&self.words)
    }
}

/// Compiles a filter.
pub(super) fn compile(text: &str) -> Result<Program, Fault> {
    check_brackets(text)?;
    let (parsed, source) = parse(text)?;
    let mut compiler = Compiler { text, source, scopes: Vec::new(), slots: 0, regexes: 0 };
    let root = compiler.expr(&parsed, 0)?;
    match root.kind() {
        Kind::Bool | Kind::Unknown => Ok(Program { root, slots: compiler.slots }),
        Kind::Other(kind) => {
            Err(compiler.fault(&parsed, format!("gives {kind}; a filter is an expression that is true or false")))
        }
    }
}

fn check_brackets(text: &str) -> Result<(), Fault> {
    let mut depth = 0_usize;
    // Brackets in strings count too: that many of them are no loss.
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > BRACKETS_MAX {
            let words = format!("is nested deeper than {BRACKETS_MAX} brackets");
            return Err(Fault { at: Some(position(text, at)), words });
        }
    }
    Ok(())
}

/// Parses on a thread of its own: a stack that overflows ends the process, and a thread of the runtime has too little.
fn parse(text: &str) -> Result<(IdedExpr, SourceInfo), Fault> {
    let unparsed = |words: &str| Fault { at: None, words: words.to_owned() };
    let parsed = thread::scope(|scope| {
        let parser = thread::Builder::new().name("filter".to_owned()).stack_size(PARSER_STACK_BYTES);
        let running = parser.spawn_scoped(scope, || Parser::new().parse_with_source_info(text));
        running.map(|running| running.join())
    });
    let Ok(joined) = parsed else { return Err(unparsed("it could not be looked at; try again")) };
    // A panic of the parser is its text's fault as well.
    let Ok(parsed) = joined else { return Err(unparsed("it is no CEL expression")) };
    parsed.map_err(|errors| {
        let Some(first) = errors.errors.first() else { return unparsed("it is no CEL expression") };
        let (line, column) = first.pos;
        let at = usize::try_from(line).ok().zip(usize::try_from(column).ok()).filter(|(line, _)| *line > 0);
        let mut words: String = first.msg.chars().take(WORDS_MAX).collect();
        if words.len() < first.msg.len() {
            words.push('…');
        }
        Fault { at, words }
    })
}

/// Line and column of a byte.
fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

struct Compiler<'t> {
    text: &'t str,
    source: SourceInfo,
    /// The macros' variables in scope, outermost first.
    scopes: Vec<(String, usize)>,
    slots: usize,
    regexes: usize,
}

impl Compiler<'_> {
    fn fault(&self, at: &IdedExpr, words: impl Into<String>) -> Fault {
        let byte = self.source.offset_for(at.id).and_then(|(start, _)| usize::try_from(start).ok());
        Fault { at: byte.map(|byte| position(self.text, byte)), words: words.into() }
    }

    fn expr(&mut self, parsed: &IdedExpr, depth: usize) -> Result<Expr, Fault> {
        if depth > DEPTH_MAX {
            return Err(self.fault(parsed, format!("is nested deeper than {DEPTH_MAX} operations")));
        }
        let depth = depth + 1;
        match &parsed.expr {
            Parsed::Literal(literal) => Ok(Expr::Literal(compile_literal(literal))),
            Parsed::Ident(name) => self.name(parsed, name),
            Parsed::Select(select) => match &select.operand.expr {
                Parsed::Ident(name) if name == "event" && self.slot(name).is_none() => {
                    let fact = fact(&select.field)
                        .ok_or_else(|| self.fault(parsed, format!("event has no {}; {FACTS}", select.field)))?;
                    Ok(if select.test { Expr::Literal(Literal::Bool(true)) } else { Expr::Fact(fact) })
                }
                _ => {
                    let (of, field) = (Box::new(self.expr(&select.operand, depth)?), select.field.as_str().into());
                    Ok(if select.test { Expr::Has(of, field) } else { Expr::Select(of, field) })
                }
            },
            Parsed::Call(call) => self.call(parsed, call, depth),
            Parsed::List(list) => {
                Ok(Expr::List(list.elements.iter().map(|one| self.expr(one, depth)).collect::<Result<_, _>>()?))
            }
            Parsed::Map(map) => {
                let entries = map.entries.iter().map(|entry| match &entry.expr {
                    EntryExpr::MapEntry(entry) => Ok([self.expr(&entry.key, depth)?, self.expr(&entry.value, depth)?]),
                    EntryExpr::StructField(_) => Err(self.fault(parsed, "makes a message; filters have no types")),
                });
                Ok(Expr::Map(entries.collect::<Result<_, _>>()?))
            }
            Parsed::Comprehension(fold) => self.fold(parsed, fold, depth),
            Parsed::Struct(_) | Parsed::Unspecified => {
                Err(self.fault(parsed, "makes a message; filters have no types"))
            }
        }
    }

    fn slot(&self, name: &str) -> Option<usize> {
        self.scopes.iter().rev().find(|(known, _)| known == name).map(|(_, slot)| *slot)
    }

    fn name(&self, parsed: &IdedExpr, name: &str) -> Result<Expr, Fault> {
        const TYPES: [&str; 10] =
            ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];
        if let Some(slot) = self.slot(name) {
            return Ok(Expr::Slot(slot));
        }
        if name == "event" {
            return Err(self.fault(parsed, format!("event is read by its fields; {FACTS}")));
        }
        match TYPES.iter().find(|known| **known == name) {
            Some(known) => Ok(Expr::Literal(Literal::Type(known))),
            None => Err(self.fault(parsed, format!("{name} is not declared; {FACTS}"))),
        }
    }

    fn pair(&mut self, call: &CallExpr, depth: usize) -> Result<Box<[Expr; 2]>, Fault> {
        Ok(Box::new([self.expr(&call.args[0], depth)?, self.expr(&call.args[1], depth)?]))
    }

    fn call(&mut self, parsed: &IdedExpr, call: &CallExpr, depth: usize) -> Result<Expr, Fault> {
        match (call.func_name.as_str(), call.args.len(), &call.target) {
            (operators::LOGICAL_AND, 2, None) => return self.pair(call, depth).map(Expr::And),
            (operators::LOGICAL_OR, 2, None) => return self.pair(call, depth).map(Expr::Or),
            (operators::INDEX, 2, None) => return self.pair(call, depth).map(Expr::Index),
            (operators::LOGICAL_NOT, 1, None) => {
                return Ok(Expr::Not(Box::new(self.expr(&call.args[0], depth)?)));
            }
            (operators::NEGATE, 1, None) => return Ok(Expr::Negate(Box::new(self.expr(&call.args[0], depth)?))),
            (operators::NOT_STRICTLY_FALSE, 1, None) => {
                return Ok(Expr::IsNotFalse(Box::new(self.expr(&call.args[0], depth)?)));
            }
            (operators::CONDITIONAL, 3, None) => {
                let [condition, then] = *self.pair(call, depth)?;
                return Ok(Expr::If(Box::new([condition, then, self.expr(&call.args[2], depth)?])));
            }
            (name, 2, None) => {
                if let Some(operator) = binary(name) {
                    return self.pair(call, depth).map(|operands| Expr::Binary(operator, operands));
                }
            }
            _ => {}
        }
        self.function(parsed, call, depth)
    }

    /// A function, called on its first argument or with it.
    fn function(&mut self, parsed: &IdedExpr, call: &CallExpr, depth: usize) -> Result<Expr, Fault> {
        let name = call.func_name.as_str();
        let parsed_arguments: Vec<&IdedExpr> = call.target.as_deref().into_iter().chain(&call.args).collect();
        if name == "matches" && parsed_arguments.len() == 2 {
            return self.matches(parsed_arguments[0], parsed_arguments[1], depth);
        }
        let Some((_, function, form)) = FUNCTIONS.iter().find(|(known, ..)| *known == name) else {
            return Err(self.fault(parsed, unknown_function(name)));
        };
        let (is_method, count) = (call.target.is_some(), parsed_arguments.len());
        let is_good = match form {
            Form::Either => count == 1,
            Form::Global => !is_method && count == 1,
            Form::Method(arguments) => is_method && count == arguments + 1,
        };
        if !is_good {
            let how = match form {
                Form::Either => format!("{name}(x) or x.{name}()"),
                Form::Global => format!("{name}(x)"),
                Form::Method(0) => format!("x.{name}(), in UTC"),
                Form::Method(_) => format!("x.{name}(y)"),
            };
            return Err(self.fault(parsed, format!("{name} is called otherwise; allowed is {how}")));
        }
        let arguments = parsed_arguments.into_iter().map(|one| self.expr(one, depth)).collect::<Result<_, _>>()?;
        Ok(Expr::Call(*function, arguments))
    }

    fn matches(&mut self, of: &IdedExpr, pattern: &IdedExpr, depth: usize) -> Result<Expr, Fault> {
        let text = self.expr(of, depth)?;
        let Parsed::Literal(LiteralValue::String(literal)) = &pattern.expr else {
            return Err(self.fault(pattern, "is no regular expression; allowed is a string as it is written"));
        };
        let built = RegexBuilder::new(literal.inner())
            .size_limit(REGEX_BYTES_MAX)
            .dfa_size_limit(REGEX_MEMORY_BYTES_MAX)
            .build()
            .map_err(|error| {
                let words = match error {
                    regex::Error::CompiledTooBig(_) => "is too large a regular expression".to_owned(),
                    // The last line says what is wrong; those before it draw the place.
                    other => {
                        let shown = other.to_string();
                        format!("is no regular expression: {}", shown.lines().last().unwrap_or_default())
                    }
                };
                self.fault(pattern, words)
            })?;
        self.regexes += 1;
        if self.regexes > REGEXES_MAX {
            return Err(self.fault(pattern, format!("is one regular expression too many; allowed are {REGEXES_MAX}")));
        }
        Ok(Expr::Matches(Box::new(text), built))
    }

    fn fold(&mut self, parsed: &IdedExpr, fold: &ComprehensionExpr, depth: usize) -> Result<Expr, Fault> {
        if fold.iter_var2.is_some() {
            return Err(self.fault(parsed, "has two variables; allowed is one"));
        }
        let range = self.expr(&fold.iter_range, depth)?;
        let first = self.expr(&fold.accu_init, depth)?;
        let (variable, gathered) = (self.scopes.len(), self.scopes.len() + 1);
        self.slots = self.slots.max(gathered + 1);
        self.scopes.push((fold.iter_var.clone(), variable));
        self.scopes.push((fold.accu_var.clone(), gathered));
        let condition = self.expr(&fold.loop_cond, depth)?;
        let step = self.expr(&fold.loop_step, depth)?;
        let result = self.expr(&fold.result, depth)?;
        self.scopes.truncate(variable);
        Ok(Expr::Fold(Box::new(Fold { range, variable, gathered, first, condition, step, result })))
    }
}

fn compile_literal(literal: &LiteralValue) -> Literal {
    match literal {
        LiteralValue::Null => Literal::Null,
        LiteralValue::Boolean(value) => Literal::Bool(*value.inner()),
        LiteralValue::Int(value) => Literal::Int(*value.inner()),
        LiteralValue::UInt(value) => Literal::UInt(*value.inner()),
        LiteralValue::Double(value) => Literal::Double(*value.inner()),
        LiteralValue::String(value) => Literal::Text(value.inner().into()),
        LiteralValue::Bytes(value) => Literal::Bytes(value.inner().into()),
    }
}

/// What an expression gives, as far as it shows without an event.
enum Kind {
    Bool,
    Other(&'static str),
    Unknown,
}

impl Expr {
    fn kind(&self) -> Kind {
        match self {
            Self::Literal(Literal::Bool(_)) | Self::Has(..) | Self::Not(_) | Self::And(_) | Self::Or(_) => Kind::Bool,
            Self::IsNotFalse(_) | Self::Matches(..) => Kind::Bool,
            Self::Literal(_) => Kind::Other("a constant"),
            Self::Fact(Fact::Type | Fact::Tenant) => Kind::Other("a string"),
            Self::Fact(Fact::Metadata) | Self::Map(_) => Kind::Other("a map"),
            Self::List(_) => Kind::Other("a list"),
            Self::Negate(_) => Kind::Other("a number"),
            Self::Binary(Binary::Add | Binary::Subtract | Binary::Multiply | Binary::Divide | Binary::Modulo, _) => {
                Kind::Other("what is added or computed")
            }
            Self::Binary(..) => Kind::Bool,
            Self::Call(Function::Contains | Function::StartsWith | Function::EndsWith | Function::Bool, _) => {
                Kind::Bool
            }
            Self::Call(Function::Dyn, _) => Kind::Unknown,
            Self::Call(Function::Size | Function::Int | Function::UInt | Function::Double, _) => {
                Kind::Other("a number")
            }
            Self::Call(Function::Clock(_), _) => Kind::Other("a number"),
            Self::Call(Function::String, _) => Kind::Other("a string"),
            Self::Call(Function::Bytes, _) => Kind::Other("bytes"),
            Self::Call(Function::Type, _) => Kind::Other("a type"),
            Self::Call(Function::Timestamp | Function::Duration, _) => Kind::Other("a time"),
            Self::Fold(fold) if matches!(fold.first, Self::List(_)) => Kind::Other("a list"),
            Self::Fact(Fact::Data)
            | Self::Slot(_)
            | Self::Select(..)
            | Self::Index(_)
            | Self::If(_)
            | Self::Fold(_) => Kind::Unknown,
        }
    }
}
