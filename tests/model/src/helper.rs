//! The helper: what it keeps in memory, and what it does with it.

use underseal_abi::State;

use crate::action::Side;
use crate::connection::{At, Connection, Life, Unit};
use crate::handover::Step;
use crate::setting::{Mutation, Rekey, Setting};

/// What a running helper knows, and how often it may still be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Helper {
    pub(crate) is: Is,
    /// In its table of connections that wait.
    pub(crate) known: [bool; 2],
    /// It has a duplicate of the socket.
    pub(crate) found: [bool; 2],
    /// Tasks it has yet to restart, a bit each.
    pub(crate) to_restart: u8,
    /// The handshake that the keys are from.
    pub(crate) handshake: u8,
    pub(crate) kills: u8,
}

/// What it is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Is {
    /// Not there.
    Away,
    /// Waiting, or looking for sockets.
    Searching,
    /// About to take this step of the hand-over.
    Sealing(u8),
}

impl Helper {
    pub(crate) const AWAY: Self = Self {
        is: Is::Away,
        known: [false; 2],
        found: [false; 2],
        to_restart: 0,
        handshake: 0,
        kills: 0,
    };

    fn forget(&mut self) {
        self.known = [false; 2];
        self.found = [false; 2];
        self.to_restart = 0;
    }
}

impl Connection {
    /// A helper reads the table of connections.
    pub(crate) fn helper_starts(&mut self) {
        self.helper.is = Is::Searching;
        for (known, end) in self.helper.known.iter_mut().zip(&self.ends) {
            *known = end.shown == State::Held;
        }
    }

    /// Its duplicates of the sockets are closed; what it wrote stays.
    pub(crate) fn helper_killed(&mut self) {
        self.helper.forget();
        self.helper.is = Is::Away;
        self.helper.kills -= 1;
    }

    /// `Session::look_for` and `take_socket`.
    pub(crate) fn look(&mut self, setting: &Setting, side: Side) {
        let end = &mut self.ends[side.index()];
        if end.life == Life::Left {
            return self.end();
        }
        match end.state {
            State::Sealed => {
                end.open = true;
                end.shown = State::Sealed;
                self.helper.known[side.index()] = false;
            }
            state if may_begin(setting, state) => self.take(setting, side),
            _ => self.end(),
        }
    }

    /// `TCP_ULP` needs a connection that is open both ways, unless it is in already.
    fn take(&mut self, setting: &Setting, side: Side) {
        let peers = &self.streams[1 - side.index()];
        let has_fin = (0..peers.arrived).any(|number| peers.unit(number) == Some(Unit::Fin));
        let end = &mut self.ends[side.index()];
        if !end.ulp && (end.life != Life::Open || has_fin) {
            return self.end();
        }
        // An earlier helper has come too far: something may be sealed with its keys.
        if (end.rx != 0 || end.tx != 0) && !replaces_keys(setting) {
            return self.end();
        }
        end.ulp = true;
        self.helper.found[side.index()] = true;
        if self.helper.found == [true; 2] {
            self.helper.is = Is::Sealing(0);
        }
    }

    /// `Session::reset_dropped`.
    pub(crate) fn hear_drop(&mut self) {
        self.end();
    }

    /// The step that comes next, if it can be taken now.
    pub(crate) fn next_step(&self, steps: &[Step]) -> Option<Step> {
        let Is::Sealing(number) = self.helper.is else {
            return None;
        };
        let step = steps.get(usize::from(number)).copied()?;
        // The helper waits for the task to stop.
        let waits = step == Step::Restart
            && self
                .restarting()
                .is_some_and(|task| !matches!(self.tasks[task].at, At::Program | At::Gone));
        (!waits).then_some(step)
    }

    /// The task that is being restarted.
    pub(crate) fn restarting(&self) -> Option<usize> {
        (0..self.tasks.len()).find(|task| self.helper.to_restart & (1 << task) != 0)
    }

    /// Takes this step, one of `steps`.
    pub(crate) fn hand_over(&mut self, setting: &Setting, steps: &[Step], step: Step) {
        match step {
            Step::CheckHeld => {
                if !self.ends.iter().all(|end| may_begin(setting, end.state)) {
                    return self.end();
                }
                self.helper.handshake += 1;
            }
            Step::Receive(side) | Step::Send(side) => {
                let end = &mut self.ends[side.index()];
                let keys = if matches!(step, Step::Receive(_)) {
                    &mut end.rx
                } else {
                    &mut end.tx
                };
                if *keys != 0 && setting.rekey == Rekey::Refused {
                    return self.end();
                }
                *keys = self.helper.handshake;
            }
            Step::Set(side, state) => self.ends[side.index()].state = state,
            Step::ReadRecords => {
                for (number, task) in self.tasks.iter().enumerate() {
                    self.helper.to_restart |= u8::from(task.recorded) << number;
                }
            }
            Step::Restart => {
                if let Some(task) = self.restarting() {
                    self.helper.to_restart &= !(1 << task);
                    self.tasks[task].recorded = false;
                    return;
                }
            }
            Step::CheckUnrecorded if self.ends.iter().any(|end| end.unrecorded) => {
                return self.end();
            }
            Step::CheckUnrecorded => {}
            Step::Open(side) => self.ends[side.index()].open = true,
            Step::Show(side) => self.ends[side.index()].shown = State::Sealed,
        }
        self.advance(steps);
    }

    fn advance(&mut self, steps: &[Step]) {
        if let Is::Sealing(number) = self.helper.is {
            self.helper.is = Is::Sealing(number + 1);
            if usize::from(number) + 1 == steps.len() {
                self.helper.is = Is::Searching;
                self.helper.forget();
            }
        }
    }
}

fn may_begin(setting: &Setting, state: State) -> bool {
    match state {
        State::Held => true,
        State::Keyed => setting.mutation == Some(Mutation::KeyedIsHeld),
        _ => false,
    }
}

const fn replaces_keys(setting: &Setting) -> bool {
    matches!(
        setting.mutation,
        Some(Mutation::KeysReplaced | Mutation::KeyedIsHeld)
    )
}
