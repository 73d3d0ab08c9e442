//! The steps of one connection of [`super::Renewals`].

use std::time::Instant;

use underseal_abi::{Conn, HelperCounter, Role as End};

use super::{Broken, Draining, Next, Node, Open, PATIENCE, Stage, Watching};
use crate::{
    Relay, Role, SocketKeys,
    helper::{
        drain::{self, Opened, Pause, Progress, Verdict},
        exchange::LinkId,
        handover::Failure,
        message::Renewal,
    },
};

impl<S> Open<S> {
    pub(super) fn new(
        conn: Conn,
        socket: S,
        (link, id): (LinkId, u64),
        replaces: bool,
        now: Instant,
    ) -> Self {
        Self {
            conn,
            socket,
            link,
            id,
            begun: false,
            replaces,
            keys: None,
            stage: Stage::Asked,
            since: now,
        }
    }

    /// When it is to be looked at next.
    pub(super) fn due(&self) -> Instant {
        match &self.stage {
            Stage::Draining(draining) => draining.due,
            Stage::Watching(watching) => watching.due,
            _ => self.since + PATIENCE,
        }
    }

    fn is_client(&self) -> bool {
        self.conn.role == End::Client as u32
    }

    /// Takes in a letter. What does not belong here is of an earlier attempt, or the other side breaks the protocol, to
    /// its own harm.
    pub(super) fn hear(
        &mut self,
        said: Renewal,
        here: &mut impl Node<S>,
        letters: &mut Vec<Renewal>,
        now: Instant,
    ) -> Result<Next, Broken> {
        match (std::mem::replace(&mut self.stage, Stage::Waiting), said) {
            (stage, Renewal::Stop(why, text)) => {
                self.stage = stage;
                return Err(Broken::Told(why, text));
            }
            (Stage::Asked, Renewal::Agree(able)) => {
                self.replaces &= able;
                return self.agreed(here, letters);
            }
            (Stage::Hello, Renewal::Tls(bytes)) => {
                let relay = self.relay(here, Role::Server)?;
                return self.shake(relay, &bytes, here, (letters, now));
            }
            (Stage::Shaking(relay), Renewal::Tls(bytes)) => {
                return self.shake(relay, &bytes, here, (letters, now));
            }
            (Stage::Unconfirmed(peer), Renewal::Verified) => {
                here.note(&self.conn, &peer).map_err(Broken::Refused)?;
                return self.verified(here, letters, now);
            }
            (Stage::Waiting, Renewal::Drain) => {
                self.stage = Stage::Watching(Watching {
                    told: None,
                    looks: 0,
                    due: now,
                });
                return self.look(here, letters, now);
            }
            (Stage::Draining(mut draining), Renewal::Opened(opened)) => {
                draining.hear(opened, now);
                self.stage = Stage::Draining(draining);
                return self.look(here, letters, now);
            }
            (Stage::Watching(_), Renewal::Replace(records)) => {
                self.receive_with(records, here)?;
                letters.push(Renewal::Replaced);
            }
            (Stage::Replacing(records), Renewal::Replaced) => {
                self.send_with(records, here)?;
                return Ok(self.turn_over(letters));
            }
            (Stage::Waiting | Stage::Watching(_), Renewal::Turn) => {
                return self.turn_here(here, letters, now);
            }
            (stage, _) => self.stage = stage,
        }
        Ok(Next::Go)
    }

    /// Both nodes want a handshake: the client's end begins.
    pub(super) fn agreed(
        &mut self,
        here: &mut impl Node<S>,
        letters: &mut Vec<Renewal>,
    ) -> Result<Next, Broken> {
        self.stage = Stage::Hello;
        if self.is_client() {
            let mut relay = self.relay(here, Role::Client)?;
            let hello = relay.take(&[]).map_err(|e| Broken::Refused(e.into()))?;
            letters.extend(Renewal::tls(&hello.send));
            self.stage = Stage::Shaking(relay);
        }
        Ok(Next::Go)
    }

    fn relay(&self, here: &impl Node<S>, role: Role) -> Result<Relay, Broken> {
        here.relay(&self.conn, &self.socket, role)
            .map_err(Broken::Refused)
    }

    fn shake(
        &mut self,
        mut relay: Relay,
        bytes: &[u8],
        here: &mut impl Node<S>,
        (letters, now): (&mut Vec<Renewal>, Instant),
    ) -> Result<Next, Broken> {
        let refused = |error: crate::HandshakeError| Broken::Refused(error.into());
        let progress = relay.take(bytes).map_err(refused)?;
        letters.extend(Renewal::tls(&progress.send));
        if !progress.finished {
            self.stage = Stage::Shaking(relay);
            return Ok(Next::Go);
        }
        let peer = relay.peer_chain();
        self.keys = Some(relay.keys().map_err(refused)?);
        if self.is_client() {
            self.stage = Stage::Unconfirmed(peer);
            return Ok(Next::Go);
        }
        here.note(&self.conn, &peer).map_err(Broken::Refused)?;
        letters.push(Renewal::Verified);
        self.verified(here, letters, now)
    }

    /// Both ends have accepted each other.
    fn verified(
        &mut self,
        here: &mut impl Node<S>,
        letters: &mut Vec<Renewal>,
        now: Instant,
    ) -> Result<Next, Broken> {
        here.count(HelperCounter::Rechecked);
        self.stage = Stage::Waiting;
        if !self.replaces {
            return Ok(Next::Done);
        }
        if self.begun {
            self.drain(here, letters, now)?;
        }
        Ok(Next::Go)
    }

    /// It is this end's turn to get a new key for sending.
    fn drain(
        &mut self,
        here: &mut impl Node<S>,
        letters: &mut Vec<Renewal>,
        now: Instant,
    ) -> Result<(), Broken> {
        here.hold(&self.conn, &self.socket)?;
        letters.push(Renewal::Drain);
        self.stage = Stage::Draining(Draining {
            begun: now,
            heard: None,
            due: now + drain::next_look(0),
        });
        Ok(())
    }

    /// Looks how far it is.
    pub(super) fn look(
        &mut self,
        here: &mut impl Node<S>,
        letters: &mut Vec<Renewal>,
        now: Instant,
    ) -> Result<Next, Broken> {
        match &mut self.stage {
            Stage::Draining(_) => self.look_sent(here, letters, now),
            Stage::Watching(watching) => {
                let opened = here.opened(&self.socket)?;
                watching.looks += 1;
                watching.due = now + drain::next_look(watching.looks);
                if watching.told.replace(opened) != Some(opened) {
                    letters.push(Renewal::Opened(opened));
                    self.since = now;
                } else if now >= self.since + PATIENCE {
                    return Err(Broken::Late);
                }
                Ok(Next::Go)
            }
            _ if now >= self.since + PATIENCE => Err(Broken::Late),
            _ => Ok(Next::Go),
        }
    }

    fn look_sent(
        &mut self,
        here: &mut impl Node<S>,
        letters: &mut Vec<Renewal>,
        now: Instant,
    ) -> Result<Next, Broken> {
        // After what was opened: what is sent meanwhile shows as a difference.
        let sent = here.sent(&self.socket)?;
        let Stage::Draining(draining) = &mut self.stage else {
            return Ok(Next::Go);
        };
        match draining.judge(sent, now) {
            Verdict::Wait => {}
            Verdict::Cut => here.pulse(&self.socket)?,
            Verdict::PutOff => {
                here.count(HelperCounter::RekeyPutOff);
                here.release(&self.conn, &self.socket)?;
                return Ok(self.turn_over(letters));
            }
            Verdict::Drained => {
                here.replacing(&self.conn, &self.socket)?;
                // Again, after the state: `underseal down` lets go of who is pausing, and resets who is replacing.
                if here.sent(&self.socket)? != sent {
                    return Err(Failure::Rekey("somebody else has ended its hold").into());
                }
                letters.push(Renewal::Replace(sent.records));
                (self.stage, self.since) = (Stage::Replacing(sent.records), now);
            }
        }
        Ok(Next::Go)
    }

    /// As receiver: everything has been read.
    fn receive_with(&mut self, records: u64, here: &mut impl Node<S>) -> Result<(), Broken> {
        let all = Opened { records, unread: 0 };
        if here.opened(&self.socket)? != all {
            return Err(Failure::Rekey("more was sent than the other node says").into());
        }
        let keys = self.keys()?;
        Ok(here.receive_with(&self.socket, keys)?)
    }

    /// As sender: the other end has its key.
    fn send_with(&mut self, records: u64, here: &mut impl Node<S>) -> Result<(), Broken> {
        let unsent = 0;
        let held = drain::Sent { unsent, records };
        // What was sent meanwhile is of the old key, and the other end waits for the new.
        if here.sent(&self.socket)? != held {
            return Err(Failure::Rekey("it has sent while it was held").into());
        }
        let keys = self.keys()?;
        here.send_with(&self.conn, &self.socket, keys)?;
        if here.sent(&self.socket)? != (drain::Sent { unsent, records: 0 }) {
            return Err(Failure::Rekey("it has sent while it was held").into());
        }
        here.release(&self.conn, &self.socket)?;
        here.count(HelperCounter::Rekeyed);
        Ok(())
    }

    fn keys(&self) -> Result<&SocketKeys, Broken> {
        let none = || Broken::Failed(Failure::Rekey("there are none"));
        self.keys.as_ref().ok_or_else(none)
    }

    /// This end's turn as sender is over. The first one's is whoever has begun.
    fn turn_over(&mut self, letters: &mut Vec<Renewal>) -> Next {
        letters.push(Renewal::Turn);
        self.stage = Stage::Waiting;
        if self.begun { Next::Go } else { Next::Done }
    }

    /// The other end's turn is over.
    fn turn_here(
        &mut self,
        here: &mut impl Node<S>,
        letters: &mut Vec<Renewal>,
        now: Instant,
    ) -> Result<Next, Broken> {
        if self.begun {
            return Ok(Next::Done);
        }
        self.drain(here, letters, now)?;
        Ok(Next::Go)
    }
}

impl Draining {
    /// The other node says what is opened.
    fn hear(&mut self, opened: Opened, now: Instant) {
        match &mut self.heard {
            Some((last, _)) => *last = opened,
            // The first letter tells how long they take, there and back.
            None => self.heard = Some((opened, Pause::new(now, 2 * (now - self.begun)))),
        }
    }

    fn judge(&mut self, sent: drain::Sent, now: Instant) -> Verdict {
        match &mut self.heard {
            Some((opened, pause)) => {
                let opened = *opened;
                self.due = now + pause.next_look();
                pause.judge(Progress { opened, sent }, now)
            }
            None => {
                self.due = now + drain::next_look(u32::MAX);
                if now - self.begun < drain::PATIENCE {
                    Verdict::Wait
                } else {
                    Verdict::PutOff
                }
            }
        }
    }
}
