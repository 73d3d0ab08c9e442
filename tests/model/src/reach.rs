//! Whether every state has a way to an end. The checker tells what is never reached; this tells what can no longer be.

use std::collections::HashMap;
use std::fmt;

use stateright::Model as _;

use crate::action::Action;
use crate::connection::Connection;
use crate::model::Protocol;
use crate::setting::Setting;

/// The way to a state from which no way leads to an end.
#[derive(Debug)]
pub struct Stuck {
    /// What happens until then.
    pub actions: Vec<Action>,
    /// How it is then.
    pub state: Connection,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for action in &self.actions {
            writeln!(f, "  {action}")?;
        }
        write!(f, "  and then for ever: {:?}", self.state)
    }
}

/// How many states there are, and the shortest way to one from which neither `sealed` nor `reset` can be reached.
#[must_use]
pub fn stuck(setting: Setting) -> (usize, Option<Stuck>) {
    let graph = Graph::explore(&Protocol::new(setting));
    let mut can_end = vec![false; graph.states.len()];
    let is_end = |number: &u32| graph.states[*number as usize].is_settled();
    let mut queue: Vec<u32> = graph.numbers().filter(is_end).collect();
    while let Some(number) = queue.pop() {
        if !std::mem::replace(&mut can_end[number as usize], true) {
            queue.extend(&graph.before[number as usize]);
        }
    }
    // A state of harm is the other rules' affair.
    let stuck = graph
        .numbers()
        .find(|n| !can_end[*n as usize] && graph.states[*n as usize].harm.is_none());
    (graph.states.len(), stuck.map(|number| graph.way(number)))
}

/// All states in the order of their distance from the start.
#[derive(Default)]
struct Graph {
    states: Vec<Connection>,
    /// The first way found to each, which is a shortest one.
    from: Vec<Option<(u32, Action)>>,
    /// Where one can come from.
    before: Vec<Vec<u32>>,
}

impl Graph {
    fn explore(model: &Protocol) -> Self {
        let mut graph = Self::default();
        let mut numbers = HashMap::new();
        for state in model.init_states() {
            numbers.insert(state, graph.add(state, None));
        }
        let (mut next, mut actions) = (0, Vec::new());
        while let Some(state) = graph.states.get(next).copied() {
            let here = next as u32;
            next += 1;
            actions.clear();
            model.actions(&state, &mut actions);
            for action in actions.iter().copied() {
                let Some(state) = model.next_state(&state, action) else {
                    continue;
                };
                let there = *numbers
                    .entry(state)
                    .or_insert_with(|| graph.add(state, Some((here, action))));
                graph.before[there as usize].push(here);
            }
        }
        graph
    }

    fn add(&mut self, state: Connection, from: Option<(u32, Action)>) -> u32 {
        self.states.push(state);
        self.from.push(from);
        self.before.push(Vec::new());
        self.states.len() as u32 - 1
    }

    fn numbers(&self) -> impl Iterator<Item = u32> {
        0..self.states.len() as u32
    }

    fn way(&self, to: u32) -> Stuck {
        let mut actions = Vec::new();
        let mut number = to;
        while let Some((before, action)) = self.from[number as usize] {
            actions.push(action);
            number = before;
        }
        actions.reverse();
        Stuck {
            actions,
            state: self.states[to as usize],
        }
    }
}
