//! A resolver that says what a test tells it, in turn, and remembers what it was asked.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone)]
pub(in crate::egress) struct Script(Arc<Lines>);

struct Lines {
    answers: Mutex<VecDeque<Vec<IpAddr>>>,
    asked: Mutex<Vec<String>>,
    delay: Duration,
}

impl Script {
    /// Each question gets the next of `answers`, and the last one for ever.
    pub(in crate::egress) fn of(answers: &[&[&str]]) -> Self {
        Self::late(answers, Duration::ZERO)
    }

    /// The same, after a while.
    pub(in crate::egress) fn late(answers: &[&[&str]], delay: Duration) -> Self {
        let parse = |answer: &&[&str]| answer.iter().map(|address| address.parse().unwrap()).collect();
        let answers = Mutex::new(answers.iter().map(parse).collect());
        Self(Arc::new(Lines { answers, asked: Mutex::default(), delay }))
    }

    pub(in crate::egress) fn asked(&self) -> Vec<String> {
        self.0.asked.lock().unwrap().clone()
    }

    pub(in crate::egress) async fn resolve(&self, host: &str) -> Arc<[IpAddr]> {
        self.0.asked.lock().unwrap().push(host.to_owned());
        tokio::time::sleep(self.0.delay).await;
        let mut answers = self.0.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        answer.unwrap_or_default().into()
    }
}
