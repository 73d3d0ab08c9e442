//! What happens to segments: `bpf/src/guard.rs`, and TCP, which sends again what was dropped.

use underseal_abi::State;

use crate::action::Side;
use crate::connection::{Connection, Life, Unit};
use crate::setting::{Mutation, Setting};

impl Connection {
    /// Whether a segment waits to leave. One that the guard has dropped is tried again, until the helper has heard.
    pub(crate) fn can_leave(&self, setting: &Setting, side: Side) -> bool {
        let (end, stream) = (&self.ends[side.index()], &self.streams[side.index()]);
        match stream.unit(stream.left) {
            None => false,
            Some(unit) => self.may_leave(setting, side, unit) || (unit != Unit::Fin && !end.told),
        }
    }

    /// The next segment meets the guard on its way out.
    pub(crate) fn leave(&mut self, setting: &Setting, side: Side) {
        let stream = &self.streams[side.index()];
        let Some(unit) = stream.unit(stream.left) else {
            return;
        };
        if self.may_leave(setting, side, unit) {
            self.streams[side.index()].left += 1;
        } else {
            self.ends[side.index()].told = true;
        }
    }

    fn may_leave(&self, setting: &Setting, side: Side, unit: Unit) -> bool {
        if !setting.has_guard() {
            return true;
        }
        match self.ends[side.index()].state {
            State::Sealed => {
                unit != Unit::Plain || setting.mutation == Some(Mutation::GuardTrustsState)
            }
            // A FIN is put off; the kernel sends it again.
            _ => false,
        }
    }

    /// Whether a segment of `side` is between the two ends.
    pub(crate) fn can_arrive(&self, setting: &Setting, side: Side) -> bool {
        let stream = &self.streams[side.index()];
        let peer = &self.ends[1 - side.index()];
        stream.arrived < stream.left
            && (self.may_arrive(setting, side) || (tells(setting, peer.state) && !peer.told))
    }

    /// It meets the guard on its way in, and then perhaps a socket that nobody reads any more.
    pub(crate) fn arrive(&mut self, setting: &Setting, side: Side) {
        let peer = 1 - side.index();
        if !self.may_arrive(setting, side) {
            self.ends[peer].told = true;
            return;
        }
        let stream = &mut self.streams[side.index()];
        let unit = stream.unit(stream.arrived);
        stream.arrived += 1;
        if self.ends[peer].life == Life::Left {
            stream.read = stream.arrived;
            // A closed socket answers data with a reset; the helper's duplicate keeps it open.
            if unit != Some(Unit::Fin) && !self.helper.found[peer] {
                self.end();
            }
        }
    }

    fn may_arrive(&self, setting: &Setting, side: Side) -> bool {
        let stream = &self.streams[side.index()];
        let sealed = self.ends[1 - side.index()].state == State::Sealed;
        !setting.has_guard() || sealed || stream.unit(stream.arrived) == Some(Unit::Fin)
    }
}

/// Whether a drop on the way in is worth a reset. A socket that is `Keyed` is so for a moment; TCP sends again.
fn tells(setting: &Setting, state: State) -> bool {
    state != State::Keyed || setting.mutation == Some(Mutation::EarlyIsFatal)
}
