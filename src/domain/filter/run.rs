//! Evaluating a compiled filter, every step counted.
//!
//! What is built costs as many steps as it has parts, so that steps bound memory, too.

use std::cmp::Ordering;
use std::rc::Rc;

use super::expr::{Binary, Expr, Fact, Fold, Function, Literal, Program};
use super::value::{Blob, List, Map, Text, Value};
use super::{Data, Facts, Failure};

/// What a step of its own has for each so many bytes of text that are looked at.
const TEXT_BYTES_A_STEP: usize = 32;
/// Steps for each byte that a regular expression looks at: it may look at it in many states.
const REGEX_STEPS_A_BYTE: usize = 8;

/// What an operation gives.
pub(super) type Outcome<T> = Result<T, Failure>;

/// Runs a filter with so many steps at most; answers how many it took, too.
pub(super) fn run(program: &Program, facts: &Facts, steps: u32) -> (Outcome<bool>, u32) {
    let mut run = Run { facts, slots: vec![Ok(Value::Null); program.slots], steps };
    let outcome = run.truth(&program.root);
    (outcome, steps - run.steps)
}

pub(super) struct Run<'v> {
    facts: &'v Facts,
    /// Macros' variables; what is gathered may be an error that a later element overrides.
    slots: Vec<Outcome<Value<'v>>>,
    /// What is left.
    steps: u32,
}

impl<'v> Run<'v> {
    /// Takes steps; none are left after a failure to do so.
    pub(super) fn spend(&mut self, steps: usize) -> Outcome<()> {
        let left = u32::try_from(steps).ok().and_then(|steps| self.steps.checked_sub(steps));
        self.steps = left.unwrap_or(0);
        if left.is_some() { Ok(()) } else { Err(Failure::TooCostly) }
    }

    /// Takes the steps of looking at so much text.
    pub(super) fn spend_text(&mut self, bytes: usize) -> Outcome<()> {
        self.spend(bytes / TEXT_BYTES_A_STEP)
    }

    fn truth(&mut self, expr: &'v Expr) -> Outcome<bool> {
        match self.eval(expr)? {
            Value::Bool(truth) => Ok(truth),
            _ => Err(Failure::Unfit("a value that is neither true nor false stands for a condition")),
        }
    }

    fn eval(&mut self, expr: &'v Expr) -> Outcome<Value<'v>> {
        self.spend(1)?;
        match expr {
            Expr::Literal(literal) => Ok(literal_value(literal)),
            Expr::Fact(fact) => Ok(self.fact(*fact)),
            Expr::Slot(slot) => self.slots[*slot].clone(),
            Expr::Select(of, field) => {
                let of = self.eval(of)?;
                self.field(&of, field)?.ok_or(Failure::Unfit("a field that is read is not there"))
            }
            Expr::Has(of, field) => {
                let of = self.eval(of)?;
                Ok(Value::Bool(self.field(&of, field)?.is_some()))
            }
            Expr::Index(operands) => {
                let (of, index) = (self.eval(&operands[0])?, self.eval(&operands[1])?);
                self.index(&of, &index)
            }
            Expr::Not(of) => Ok(Value::Bool(!self.truth(of)?)),
            Expr::Negate(of) => {
                let of = self.eval(of)?;
                self.negate(&of)
            }
            Expr::And(operands) => self.either(operands, false),
            Expr::Or(operands) => self.either(operands, true),
            Expr::If(operands) => {
                let [condition, then, otherwise] = operands.as_ref();
                if self.truth(condition)? { self.eval(then) } else { self.eval(otherwise) }
            }
            Expr::Binary(operator, operands) => {
                let (left, right) = (self.eval(&operands[0])?, self.eval(&operands[1])?);
                self.binary(*operator, left, &right)
            }
            Expr::IsNotFalse(of) => match self.truth(of) {
                Err(Failure::TooCostly) => Err(Failure::TooCostly),
                outcome => Ok(Value::Bool(outcome != Ok(false))),
            },
            Expr::Call(function, arguments) => self.call(*function, arguments),
            Expr::Matches(of, regex) => match self.eval(of)? {
                Value::Text(text) => {
                    self.spend(text.as_str().len().saturating_mul(REGEX_STEPS_A_BYTE))?;
                    Ok(Value::Bool(regex.is_match(text.as_str())))
                }
                _ => Err(Failure::Unfit("what is matched with a regular expression is no string")),
            },
            Expr::List(items) => {
                let items = items.iter().map(|item| self.eval(item)).collect::<Outcome<Vec<_>>>()?;
                Ok(Value::List(List::Made(Rc::new(items))))
            }
            Expr::Map(entries) => self.map(entries),
            Expr::Fold(fold) => self.fold(fold),
        }
    }

    fn fact(&self, fact: Fact) -> Value<'v> {
        let facts = self.facts;
        match fact {
            Fact::Type => Value::Text(Text::Of(&facts.event_type)),
            Fact::Tenant => Value::Text(Text::Of(&facts.tenant)),
            Fact::Metadata => Value::Map(Map::Of(&facts.metadata)),
            Fact::Data => match &facts.data {
                Data::Json(json) => Value::from(json),
                Data::Bytes(bytes) => Value::Bytes(Blob::Of(bytes)),
            },
        }
    }

    /// `&&` ends with false, `||` with true, whichever operand has it: an error of the other one does not count.
    fn either(&mut self, operands: &'v [Expr; 2], end: bool) -> Outcome<Value<'v>> {
        let left = self.truth(&operands[0]);
        if left == Ok(end) || left == Err(Failure::TooCostly) {
            return left.map(Value::Bool);
        }
        let right = self.truth(&operands[1]);
        if right == Ok(end) || right == Err(Failure::TooCostly) {
            return right.map(Value::Bool);
        }
        left.and(right).map(Value::Bool)
    }

    /// A map's value; `None` where there is none.
    pub(super) fn field(&mut self, of: &Value<'v>, name: &str) -> Outcome<Option<Value<'v>>> {
        match of {
            Value::Map(Map::Of(entries)) => Ok(entries.get(name).map(Value::from)),
            Value::Map(Map::Made(entries)) => {
                self.spend(entries.len())?;
                let is_wanted = |key: &Value<'_>| matches!(key, Value::Text(text) if text.as_str() == name);
                Ok(entries.iter().find(|(key, _)| is_wanted(key)).map(|(_, value)| value.clone()))
            }
            _ => Err(Failure::Unfit("a field is read of what has no fields")),
        }
    }

    fn index(&mut self, of: &Value<'v>, index: &Value<'v>) -> Outcome<Value<'v>> {
        const NOT_THERE: Failure = Failure::Unfit("an element that is read is not there");
        match (of, index) {
            (Value::List(list), Value::Int(place)) => {
                usize::try_from(*place).ok().and_then(|place| list.get(place)).ok_or(NOT_THERE)
            }
            (Value::List(list), Value::UInt(place)) => {
                usize::try_from(*place).ok().and_then(|place| list.get(place)).ok_or(NOT_THERE)
            }
            (Value::Map(_), Value::Text(name)) => self.field(of, name.as_str())?.ok_or(NOT_THERE),
            (Value::Map(Map::Made(entries)), key) => {
                for (known, value) in entries.iter() {
                    if self.equals(known, key)? {
                        return Ok(value.clone());
                    }
                }
                Err(NOT_THERE)
            }
            (Value::Map(Map::Of(_)), Value::Int(_) | Value::UInt(_) | Value::Bool(_)) => Err(NOT_THERE),
            _ => Err(Failure::Unfit("an element is read of what has none such")),
        }
    }

    fn map(&mut self, entries: &'v [[Expr; 2]]) -> Outcome<Value<'v>> {
        let mut made: Vec<(Value<'v>, Value<'v>)> = Vec::with_capacity(entries.len());
        for [key, value] in entries {
            let key = self.eval(key)?;
            if !matches!(key, Value::Text(_) | Value::Int(_) | Value::UInt(_) | Value::Bool(_)) {
                return Err(Failure::Unfit("a map has a key that can be none"));
            }
            for (known, _) in &made {
                if self.equals(known, &key)? {
                    return Err(Failure::Unfit("a map has a key twice"));
                }
            }
            made.push((key, self.eval(value)?));
        }
        Ok(Value::Map(Map::Made(Rc::new(made))))
    }

    fn fold(&mut self, fold: &'v Fold) -> Outcome<Value<'v>> {
        let items = match self.eval(&fold.range)? {
            Value::List(list) => list,
            Value::Map(map) => {
                self.spend(map.len())?;
                List::Made(Rc::new(map.keys()))
            }
            _ => return Err(Failure::Unfit("a macro goes over what is neither list nor map")),
        };
        self.slots[fold.gathered] = self.eval(&fold.first);
        // Only `all` and `exists` have a condition, and only they may get over an error.
        let is_endless = matches!(fold.condition, Expr::Literal(Literal::Bool(true)));
        for item in items.iter() {
            if !is_endless && !self.truth(&fold.condition)? {
                break;
            }
            self.slots[fold.variable] = Ok(item);
            let gathered = self.step(&fold.step, fold.gathered);
            match gathered {
                Err(failure) if is_endless || failure == Failure::TooCostly => return Err(failure),
                gathered => self.slots[fold.gathered] = gathered,
            }
        }
        self.eval(&fold.result)
    }

    /// What is gathered after an element. A list that grows is taken out of its slot, so that it grows in its place.
    fn step(&mut self, step: &'v Expr, gathered: usize) -> Outcome<Value<'v>> {
        let is_gathered = |expr: &Expr| matches!(expr, Expr::Slot(slot) if *slot == gathered);
        match step {
            Expr::Slot(slot) if *slot == gathered => std::mem::replace(&mut self.slots[gathered], Ok(Value::Null)),
            Expr::Binary(Binary::Add, operands) if is_gathered(&operands[0]) => {
                let added = self.eval(&operands[1])?;
                let list = std::mem::replace(&mut self.slots[gathered], Ok(Value::Null))?;
                self.binary(Binary::Add, list, &added)
            }
            Expr::If(operands) => {
                let [condition, then, otherwise] = operands.as_ref();
                let chosen = if self.truth(condition)? { then } else { otherwise };
                self.step(chosen, gathered)
            }
            other => self.eval(other),
        }
    }

    fn call(&mut self, function: Function, arguments: &'v [Expr]) -> Outcome<Value<'v>> {
        match arguments {
            [of] => {
                let of = self.eval(of)?;
                self.apply(function, of)
            }
            [of, with] => {
                let (of, with) = (self.eval(of)?, self.eval(with)?);
                self.look_into(function, &of, &with)
            }
            _ => Err(Failure::Unfit("a function has too many arguments")),
        }
    }

    /// Whether two values are the same; those of different kinds are not, but numbers are.
    pub(super) fn equals(&mut self, left: &Value<'v>, right: &Value<'v>) -> Outcome<bool> {
        self.spend(1)?;
        Ok(match (left, right) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Text(a), Value::Text(b)) => {
                self.spend_text(a.as_str().len().min(b.as_str().len()))?;
                a.as_str() == b.as_str()
            }
            (Value::Bytes(a), Value::Bytes(b)) => {
                self.spend_text(a.as_slice().len().min(b.as_slice().len()))?;
                a.as_slice() == b.as_slice()
            }
            (Value::List(a), Value::List(b)) => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                for (a, b) in a.iter().zip(b.iter()) {
                    if !self.equals(&a, &b)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::Map(a), Value::Map(b)) => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                self.spend(a.len())?;
                for key in a.keys() {
                    let (a, b) = (self.index(left, &key)?, self.index(right, &key));
                    match b {
                        Ok(b) if self.equals(&a, &b)? => {}
                        Err(Failure::TooCostly) => return Err(Failure::TooCostly),
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Value::Time(a), Value::Time(b)) => a == b,
            (Value::Span(a), Value::Span(b)) => a == b,
            (Value::Type(a), Value::Type(b)) => a == b,
            (a, b) => a.compare_numbers(b) == Some(Ordering::Equal),
        })
    }
}

fn literal_value(literal: &Literal) -> Value<'_> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(value) => Value::Int(*value),
        Literal::UInt(value) => Value::UInt(*value),
        Literal::Double(value) => Value::Double(*value),
        Literal::Text(text) => Value::Text(Text::Of(text)),
        Literal::Bytes(bytes) => Value::Bytes(Blob::Of(bytes)),
        Literal::Type(name) => Value::Type(name),
    }
}
