//! The tasks that send and receive: `bpf/src/sleepers.rs`, and what follows it in the kernel.

use underseal_abi::State;

use crate::connection::{At, Code, Connection, Harm, Life, Unit};
use crate::setting::{Mutation, Setting, Talk};

/// How many units one sender sends.
const fn to_send(talk: Talk) -> usize {
    match talk {
        Talk::BothWays => 1,
        _ => 2,
    }
}

pub(crate) const fn end_of(task: usize) -> usize {
    task / 2
}

const fn sends(task: usize) -> bool {
    task.is_multiple_of(2)
}

impl Connection {
    /// Whether task `task` can go on from where it is.
    pub(crate) fn can_go_on(&self, setting: &Setting, task: usize) -> bool {
        let end = &self.ends[end_of(task)];
        match self.tasks[task].at {
            At::Gone => false,
            // A client may try while the connection is being made.
            At::Program => end_of(task) == 0 || self.accepted,
            At::Noticed | At::Recorded | At::Entering => true,
            At::Inside(_) if sends(task) => {
                end.life == Life::Shut
                    || (self.established
                        && end.open
                        && self.streams[end_of(task)].data() < to_send(setting.talk))
            }
            At::Inside(_) => {
                let from = &self.streams[1 - end_of(task)];
                from.read < from.arrived
            }
        }
    }

    /// Task `task` goes one step on.
    pub(crate) fn go_on(&mut self, setting: &Setting, task: usize) {
        let number = end_of(task);
        let end = self.ends[number];
        let keys = if sends(task) { end.tx } else { end.rx };
        let next = match self.tasks[task].at {
            At::Program if self.notices(setting, task) => At::Noticed,
            At::Program => At::Entering,
            At::Noticed => {
                let is_late = setting.mutation == Some(Mutation::RecordLate);
                self.tasks[task].is_late = is_late;
                self.tasks[task].recorded = !is_late;
                // A kprobe cannot look again, and so leaves the record.
                if looks_again(setting) {
                    At::Recorded
                } else {
                    At::Entering
                }
            }
            At::Recorded => {
                self.tasks[task].recorded = end.waits_for_keys();
                At::Entering
            }
            At::Entering if keys == 0 => At::Inside(Code::Tcp),
            At::Entering => At::Inside(Code::Ktls),
            At::Inside(code) if sends(task) => self.send(setting, number, code),
            At::Inside(code) => self.receive(setting, number, code),
            At::Gone => At::Gone,
        };
        self.tasks[task].at = next;
    }

    /// The record of task `task` is in the map for everybody.
    pub(crate) fn record_lands(&mut self, task: usize) {
        self.tasks[task].is_late = false;
        self.tasks[task].recorded = true;
    }

    /// The map of sleeping tasks is full.
    pub(crate) fn go_on_unrecorded(&mut self, setting: &Setting, task: usize) {
        let is_traced = setting.mutation != Some(Mutation::SpliceUntraced);
        self.ends[end_of(task)].unrecorded |= is_traced;
        self.tasks[task].at = At::Entering;
    }

    fn notices(&self, setting: &Setting, task: usize) -> bool {
        let end = &self.ends[end_of(task)];
        match setting.talk {
            Talk::BothWays | Talk::ClientSpeaks | Talk::ServerSpeaks => end.waits_for_keys(),
            // By the table of connections: a kprobe does not reach the socket's storage.
            Talk::Splice if end.shown == State::New => {
                setting.mutation != Some(Mutation::SpliceUnseenWhileNew)
            }
            Talk::Splice => end.shown == State::Held,
        }
    }

    fn send(&mut self, setting: &Setting, number: usize, code: Code) -> At {
        let end = &self.ends[number];
        if end.life == Life::Shut {
            return At::Gone;
        }
        let unit = match code {
            Code::Tcp => Unit::Plain,
            Code::Ktls => Unit::Record(end.tx),
        };
        let stream = &mut self.streams[number];
        stream.push(unit);
        if stream.data() == to_send(setting.talk) {
            At::Gone
        } else {
            At::Program
        }
    }

    fn receive(&mut self, setting: &Setting, number: usize, code: Code) -> At {
        let keys = self.ends[number].rx;
        let stream = &mut self.streams[1 - number];
        let unit = stream.unit(stream.read);
        stream.read += 1;
        self.harm = match (unit, code) {
            (Some(Unit::Record(_)), Code::Tcp) => Some(Harm::CiphertextRead),
            (Some(Unit::Plain), Code::Tcp) => Some(Harm::PlaintextRead),
            (Some(Unit::Plain), Code::Ktls) => Some(Harm::RecordRefused),
            (Some(Unit::Record(from)), Code::Ktls) if from != keys => Some(Harm::RecordRefused),
            _ => None,
        };
        // It knows how much there is to come, as most protocols do.
        if unit == Some(Unit::Fin) || usize::from(stream.read) == to_send(setting.talk) {
            At::Gone
        } else {
            At::Program
        }
    }
}

fn looks_again(setting: &Setting) -> bool {
    let skips = matches!(
        setting.mutation,
        Some(Mutation::NoSecondLook | Mutation::RecordLate)
    );
    setting.talk != Talk::Splice && !skips
}
