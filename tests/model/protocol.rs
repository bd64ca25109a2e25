//! Workers, an operator and time, acting on the rows one statement after the other, in every order there is.
//!
//! A claim, a cancel and a retry take two steps, the look and the act, so that anything may happen between them. A
//! worker that stops acting is one that is stalled; one that crashes forgets its claim. An answer and its completion are
//! one step: nothing that happens between the two can change either.

use hooklane::domain::delivery::DeliveryState;
use hooklane::domain::retry::RetryPolicy;
use stateright::{Model, Property};

use crate::properties::{self, Witness};
use crate::rows::{Answer, Claim, Lease, Row, Rule, Tables};

/// A bounded world, in which everything ends: each action that could be repeated for ever has a budget.
#[derive(Debug, Clone)]
pub(crate) struct Protocol {
    pub(crate) rule: Rule,
    pub(crate) workers: usize,
    pub(crate) deliveries: usize,
    pub(crate) budget: Budget,
    pub(crate) policy: RetryPolicy,
}

/// How often what need not happen may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Budget {
    /// Workers that die with their claim.
    pub(crate) crashes: u8,
    /// Leases that lapse under a worker that is only slow.
    pub(crate) stalls: u8,
    /// Commits of a result whose answer is lost.
    pub(crate) unheard: u8,
    pub(crate) releases: u8,
    pub(crate) cancels: u8,
    pub(crate) retries: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct State {
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) operator: Operator,
    pub(crate) budget: Budget,
}

/// A delivery's rows, and what has happened to it outside of the database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Delivery {
    pub(crate) tables: Tables,
    pub(crate) witness: Witness,
}

/// One claim's worth of a worker: a process has many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Worker {
    Idle,
    /// Has read a row, and is about to claim it. `seen` is kept where a rule trusts it.
    Looked {
        delivery: usize,
        seen: Option<Row>,
    },
    Holds {
        delivery: usize,
        claim: Claim,
        step: Step,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    /// Nothing has left yet.
    Claimed,
    /// The request has left.
    Sent,
    /// The result was written, perhaps: the commit's answer was lost, and it will be written again.
    Unheard(Option<Answer>),
}

/// Whoever calls CancelDelivery and RetryDelivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Operator {
    Idle,
    Looked { delivery: usize, verb: Verb, seen_waiting: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Verb {
    Cancel,
    Retry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// A worker reads a row that can be claimed.
    Look {
        worker: usize,
        delivery: usize,
    },
    Claim {
        worker: usize,
    },
    Send {
        worker: usize,
    },
    /// The result goes on record; `None`: no request was made. Unheard: and the worker does not hear of it.
    Complete {
        worker: usize,
        answer: Option<Answer>,
        is_heard: bool,
    },
    Renew {
        worker: usize,
    },
    Release {
        worker: usize,
    },
    Crash {
        worker: usize,
    },
    /// A lease's time is over.
    Lapse {
        delivery: usize,
    },
    /// A retry's time has come.
    Due {
        delivery: usize,
    },
    /// The operator reads a row.
    Ask {
        delivery: usize,
        verb: Verb,
    },
    Act,
}

impl Protocol {
    /// A worker whose claim is the current one of `delivery`.
    fn is_held(state: &State, delivery: usize) -> bool {
        let Some(row) = state.deliveries[delivery].tables.outstanding else { return false };
        state.workers.iter().any(
            |worker| matches!(worker, Worker::Holds { delivery: d, claim, .. } if *d == delivery && claim.serial == row.claims),
        )
    }

    fn worker_actions(&self, state: &State, worker: usize, actions: &mut Vec<Action>) {
        let budget = state.budget;
        match state.workers[worker] {
            Worker::Idle => {
                let is_claimable = |one: &Delivery| one.tables.outstanding.is_some_and(|row| row.is_claimable());
                let claimable = (0..self.deliveries).filter(|&delivery| is_claimable(&state.deliveries[delivery]));
                actions.extend(claimable.map(|delivery| Action::Look { worker, delivery }));
            }
            Worker::Looked { .. } => actions.push(Action::Claim { worker }),
            Worker::Holds { delivery, claim, step } => {
                let mut endings: Vec<Option<Answer>> = Vec::new();
                match step {
                    Step::Claimed if claim.unsent(self.rule).is_some() => endings.push(None),
                    Step::Claimed => {
                        actions.push(Action::Send { worker });
                        if budget.releases > 0 {
                            actions.push(Action::Release { worker });
                        }
                    }
                    Step::Sent => endings.extend(Answer::ALL.map(Some)),
                    Step::Unheard(answer) => endings.push(answer),
                }
                for answer in endings {
                    actions.push(Action::Complete { worker, answer, is_heard: true });
                    if budget.unheard > 0 && !matches!(step, Step::Unheard(_)) {
                        actions.push(Action::Complete { worker, answer, is_heard: false });
                    }
                }
                if budget.crashes > 0 {
                    actions.push(Action::Crash { worker });
                }
                let row = state.deliveries[delivery].tables.outstanding;
                if row.is_some_and(|row| row.lease == Lease::Lapsed) {
                    actions.push(Action::Renew { worker });
                }
            }
        }
    }

    fn act(&self, state: &mut State) {
        let Operator::Looked { delivery, verb, seen_waiting } = state.operator else { return };
        let Delivery { tables, witness } = &mut state.deliveries[delivery];
        match verb {
            Verb::Cancel if tables.cancel(seen_waiting) => witness.is_canceled = true,
            Verb::Retry if tables.retry(self.rule, seen_waiting) => witness.is_canceled = false,
            Verb::Cancel | Verb::Retry => {}
        }
        state.operator = Operator::Idle;
    }

    fn complete(&self, state: &mut State, worker: usize, answer: Option<Answer>, is_heard: bool) {
        let Worker::Holds { delivery, claim, step } = &mut state.workers[worker] else { return };
        let ending = match answer {
            Some(answer) => Some(claim.settle(answer, &self.policy)),
            None => claim.unsent(self.rule),
        };
        let Some(ending) = ending else { return };
        let Delivery { tables, witness } = &mut state.deliveries[*delivery];
        witness.is_delivered |= answer == Some(Answer::Ok);
        tables.complete(self.rule, claim, ending, answer);
        if is_heard {
            state.workers[worker] = Worker::Idle;
        } else {
            *step = Step::Unheard(answer);
            state.budget.unheard -= 1;
        }
    }

    fn look(&self, state: &mut State, worker: usize, delivery: usize) {
        let row = state.deliveries[delivery].tables.outstanding;
        state.workers[worker] =
            Worker::Looked { delivery, seen: row.filter(|_| self.rule == Rule::ClaimWithoutRecheck) };
        if let Some(row) = row.filter(|_| self.rule == Rule::RequestBeforeClaim) {
            state.deliveries[delivery].witness.sent.push(row.attempt_count + 1);
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let delivery = Delivery { tables: Tables::published(), witness: Witness::default() };
        vec![State {
            deliveries: vec![delivery; self.deliveries],
            workers: vec![Worker::Idle; self.workers],
            operator: Operator::Idle,
            budget: self.budget,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for worker in 0..self.workers {
            self.worker_actions(state, worker, actions);
        }
        for delivery in 0..self.deliveries {
            let Some(row) = state.deliveries[delivery].tables.outstanding else { continue };
            // A lease that nobody will renew lapses; under a worker that lives it takes a stall.
            if row.lease == Lease::Holds && (state.budget.stalls > 0 || !Self::is_held(state, delivery)) {
                actions.push(Action::Lapse { delivery });
            }
            if !row.is_due {
                actions.push(Action::Due { delivery });
            }
        }
        match state.operator {
            Operator::Looked { .. } => actions.push(Action::Act),
            Operator::Idle => {
                for delivery in 0..self.deliveries {
                    if state.budget.cancels > 0 {
                        actions.push(Action::Ask { delivery, verb: Verb::Cancel });
                    }
                    if state.budget.retries > 0 {
                        actions.push(Action::Ask { delivery, verb: Verb::Retry });
                    }
                }
            }
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Look { worker, delivery } => self.look(&mut state, worker, delivery),
            Action::Claim { worker } => {
                let Worker::Looked { delivery, seen } = state.workers[worker] else { return None };
                let claimed = state.deliveries[delivery].tables.claim(self.rule, seen);
                state.workers[worker] =
                    claimed.map_or(Worker::Idle, |claim| Worker::Holds { delivery, claim, step: Step::Claimed });
            }
            Action::Send { worker } => {
                let Worker::Holds { delivery, claim, step } = &mut state.workers[worker] else { return None };
                *step = Step::Sent;
                let witness = &mut state.deliveries[*delivery].witness;
                if self.rule != Rule::RequestBeforeClaim {
                    witness.sent.push(claim.attempt);
                }
                witness.see_request(claim);
            }
            Action::Complete { worker, answer, is_heard } => self.complete(&mut state, worker, answer, is_heard),
            Action::Renew { worker } => {
                let Worker::Holds { delivery, claim, .. } = state.workers[worker] else { return None };
                state.deliveries[delivery].tables.renew(self.rule, &claim);
            }
            Action::Release { worker } => {
                let Worker::Holds { delivery, claim, .. } = state.workers[worker] else { return None };
                state.deliveries[delivery].tables.release(self.rule, &claim);
                state.workers[worker] = Worker::Idle;
                state.budget.releases -= 1;
            }
            Action::Crash { worker } => {
                state.workers[worker] = Worker::Idle;
                state.budget.crashes -= 1;
            }
            Action::Lapse { delivery } => {
                state.budget.stalls -= u8::from(Self::is_held(before, delivery));
                state.deliveries[delivery].tables.outstanding.as_mut()?.lease = Lease::Lapsed;
            }
            Action::Due { delivery } => state.deliveries[delivery].tables.outstanding.as_mut()?.is_due = true,
            Action::Ask { delivery, verb } => {
                match verb {
                    Verb::Cancel => state.budget.cancels -= 1,
                    Verb::Retry => state.budget.retries -= 1,
                }
                let seen = before.deliveries[delivery].tables.state();
                let seen_waiting = match verb {
                    Verb::Cancel => {
                        self.rule == Rule::CancelWithoutRecheck
                            && matches!(seen, Some(DeliveryState::Pending | DeliveryState::Retrying))
                    }
                    Verb::Retry => self.rule == Rule::RetryWithoutRecheck && seen == Some(DeliveryState::Retrying),
                };
                state.operator = Operator::Looked { delivery, verb, seen_waiting };
            }
            Action::Act => self.act(&mut state),
        }
        properties::witness(before, action, &mut state);
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}

impl State {
    /// The same state with workers and deliveries in a fixed order: they differ by nothing but their places.
    pub(crate) fn representative(&self) -> Self {
        let swapped = (self.deliveries.len() == 2).then(|| {
            let mut swapped = self.clone();
            swapped.deliveries.swap(0, 1);
            for worker in &mut swapped.workers {
                if let Worker::Looked { delivery, .. } | Worker::Holds { delivery, .. } = worker {
                    *delivery = 1 - *delivery;
                }
            }
            if let Operator::Looked { delivery, .. } = &mut swapped.operator {
                *delivery = 1 - *delivery;
            }
            swapped.workers.sort_unstable();
            swapped
        });
        let mut same = self.clone();
        same.workers.sort_unstable();
        swapped.into_iter().fold(same, Ord::min)
    }
}
