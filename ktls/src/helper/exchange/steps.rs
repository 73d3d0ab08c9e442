//! The steps of [`Exchange`], one function each.

use std::time::Instant;

use underseal_abi::{Conn, HelperCounter, Role as End};

use super::{
    Direction, Effect, Ending, Exchange, LinkId, MOST_HANDSHAKES, MOST_WANTED, NEXT_ASK, PATIENCE,
    Stage, Surroundings, Wanted,
};
use crate::{
    Relay, Role,
    helper::{
        message::{Letter, Message, Refused},
        peers::About,
        refusal,
        table::{Key, key},
    },
};

impl<S> Exchange<S> {
    pub(super) fn open(&mut self, cookie: u64) {
        let Some(end) = self.ends.get_mut(&cookie) else {
            return;
        };
        let (node, key) = (end.conn.node, key(&end.conn));
        let out = self
            .links
            .iter()
            .find(|(_, l)| **l == (node, Direction::Out));
        match out.map(|(link, _)| *link) {
            Some(link) => {
                end.link = Some((link, cookie));
                self.send(link, cookie, Message::Open(key));
            }
            None => self.effects.push_back(Effect::Reach(node)),
        }
    }

    pub(super) fn ask(&mut self, conn: &Conn, now: Instant) {
        let mut links = self.links.iter();
        let out = links.find(|(_, l)| **l == (conn.node, Direction::Out));
        match out.map(|(link, _)| *link) {
            Some(link) => self.send(link, conn.cookie, Message::Ask(key(conn))),
            None => self.effects.push_back(Effect::Reach(conn.node)),
        }
        if let Some(end) = self.ends.get_mut(&conn.cookie) {
            end.ask = now + NEXT_ASK;
        }
    }

    /// Another node names a connection to a workload of this one.
    pub(super) fn opened(
        &mut self,
        key: &Key,
        (link, id, node): (LinkId, u64, u32),
        here: &impl Surroundings,
        now: Instant,
    ) {
        let (client, _, server, _) = key;
        let held = self.by_key.contains_key(key) || here.is_held(key);
        let refusal = if here.node_of(client) != Some(node) {
            Some((Refused::Unknown, "the client's address is not that node's"))
        } else if !here.is_workload(server) {
            Some((Refused::Unknown, "no workload has the server's address"))
        } else if !held && !here.seals() {
            Some((Refused::NotSealing, NOT_SEALING))
        } else if self.wanted.len() >= MOST_WANTED {
            Some((Refused::Failed, "too many connections wait"))
        } else {
            None
        };
        if let Some((why, text)) = refusal {
            return self.send(link, id, Message::Refuse(why, text.to_owned()));
        }
        self.unwant(key);
        self.by_id.insert((link, id), *key);
        let since = now;
        self.wanted.insert(*key, Wanted { link, id, since });
        let Some(cookie) = self.by_key.get(key).copied() else {
            return;
        };
        // A helper that was restarted names again what the one before had named: whatever was
        // begun with that one is void.
        if let Some((conn, _)) = self.socket(cookie) {
            let conn = *conn;
            self.begin_again(&conn);
        }
        self.attach(cookie, key);
    }

    pub(super) fn asked(&mut self, key: &Key, (link, id): (LinkId, u64), here: &impl Surroundings) {
        if self.by_key.contains_key(key) || here.is_held(key) {
            return;
        }
        let (why, text) = if here.is_workload(&key.0) && !here.seals() {
            (Refused::NotSealing, NOT_SEALING)
        } else {
            (Refused::Unknown, "the client's node does not know it")
        };
        self.send(link, id, Message::Refuse(why, text.to_owned()));
    }

    /// A server's end and the letter that named it have met.
    pub(super) fn attach(&mut self, cookie: u64, key: &Key) {
        if let (Some(end), Some(wanted)) = (self.ends.get_mut(&cookie), self.wanted.get(key)) {
            end.link = Some((wanted.link, wanted.id));
            self.queue.push_back(cookie);
        }
    }

    /// Lets as many handshakes begin as there is room for.
    pub(super) fn begin(&mut self, now: Instant) {
        while self.busy.len() < MOST_HANDSHAKES
            && let Some(cookie) = self.queue.pop_front()
        {
            let Some(end) = self.ends.get_mut(&cookie) else {
                continue;
            };
            if let (Stage::Waiting, Some((link, id))) = (&end.stage, end.link) {
                (end.stage, end.since) = (Stage::Begun, now);
                self.busy.insert(cookie);
                self.send(link, id, Message::Begin);
            }
        }
    }

    /// Goes on with a handshake, or begins one.
    pub(super) fn shake(
        &mut self,
        cookie: u64,
        bytes: Option<&[u8]>,
        here: &impl Surroundings,
        now: Instant,
    ) {
        let Some(end) = self.ends.get_mut(&cookie) else {
            return;
        };
        let relay = match (std::mem::replace(&mut end.stage, Stage::Waiting), bytes) {
            (Stage::Waiting, None) => here.relay(&end.conn, Role::Client),
            (Stage::Begun, Some(_)) => here.relay(&end.conn, Role::Server),
            (Stage::Shaking(relay), Some(_)) => Ok(relay),
            (stage, _) => return end.stage = stage,
        };
        match relay.and_then(|relay| advance(relay, bytes.unwrap_or_default())) {
            Ok((flight, stage)) => {
                let is_keyed = matches!(stage, Stage::Keyed { .. });
                (end.stage, end.since) = (stage, now);
                if let Some((link, id)) = end.link {
                    Message::tls(&flight).for_each(|part| self.send(link, id, part));
                }
                if is_keyed {
                    self.busy.remove(&cookie);
                    self.effects.push_back(Effect::Prime(cookie));
                }
            }
            Err(error) => {
                let About { own, peer, .. } = here.about(&end.conn);
                let text = format!("handshake of {own} with {peer}: {error:#}");
                if let Some(reason) = refusal::counter(&error) {
                    self.effects.push_back(Effect::Count(reason));
                }
                self.fail(
                    cookie,
                    Refused::Identity,
                    HelperCounter::ResetRefused,
                    &text,
                );
            }
        }
    }

    pub(super) fn other_ready(&mut self, cookie: u64) {
        match self.ends.get_mut(&cookie).map(|end| &mut end.stage) {
            Some(Stage::Keyed { other_ready, .. }) => *other_ready = true,
            Some(Stage::Primed) => self.release(cookie),
            _ => {}
        }
    }

    pub(super) fn release(&mut self, cookie: u64) {
        if let Some(end) = self.remove(cookie) {
            self.effects
                .push_back(Effect::Release(end.conn, end.socket));
        }
    }

    pub(super) fn refused(
        &mut self,
        cookie: u64,
        why: Refused,
        text: &str,
        here: &impl Surroundings,
    ) {
        let Some(end) = self.remove(cookie) else {
            return;
        };
        let counter = match why {
            // This node would not seal it either, had it been established now.
            Refused::NotSealing if matches!(end.stage, Stage::Waiting) && !here.seals() => {
                return self.effects.push_back(Effect::LetGo(end.conn, end.socket));
            }
            Refused::NotSealing => HelperCounter::ResetNotSealing,
            Refused::Identity => HelperCounter::ResetRefused,
            Refused::Unknown | Refused::Failed => HelperCounter::ResetNode,
        };
        let mut text = format!("the other node refuses it: {text}");
        if why == Refused::Identity {
            let About {
                own, certificate, ..
            } = here.about(&end.conn);
            let file = certificate.display();
            text += &format!(" ({own} has shown {file}, unless that has been replaced since)");
        }
        self.effects
            .push_back(Effect::Reset(end.conn, counter, text));
    }

    /// The client's end is gone. Its reset is on the way, but may get lost.
    pub(super) fn cancelled(&mut self, cookie: u64) {
        if let Some((conn, _)) = self.socket(cookie) {
            let conn = *conn;
            self.begin_again(&conn);
        }
    }

    /// What was begun over a link is void.
    pub(super) fn begin_again(&mut self, conn: &Conn) {
        self.busy.remove(&conn.cookie);
        let Some(end) = self.ends.get_mut(&conn.cookie) else {
            return;
        };
        end.link = None;
        match end.stage {
            Stage::Primed => {
                self.remove(conn.cookie);
                let text = "the link to the other node's helper broke when keys were in already";
                let counter = HelperCounter::ResetNode;
                self.effects
                    .push_back(Effect::Reset(*conn, counter, text.to_owned()));
            }
            _ => {
                end.stage = Stage::Waiting;
                if conn.role == End::Client as u32 {
                    self.effects.push_back(Effect::Reach(conn.node));
                }
            }
        }
    }

    /// Gives up connections that were named and have not arrived.
    pub(super) fn expire(&mut self, here: &impl Surroundings, now: Instant) {
        let late = |w: &Wanted| w.since + PATIENCE <= now;
        let keys: Vec<Key> = self
            .wanted
            .iter()
            .filter(|(key, wanted)| late(wanted) && !self.by_key.contains_key(*key))
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            if here.is_held(&key) {
                // Its server takes its time to accept.
                if let Some(wanted) = self.wanted.get_mut(&key) {
                    wanted.since = now;
                }
            } else if let Some(wanted) = self.unwant(&key) {
                let text = "the connection has not arrived there".to_owned();
                self.send(
                    wanted.link,
                    wanted.id,
                    Message::Refuse(Refused::Unknown, text),
                );
            }
        }
    }

    pub(super) fn named(&self, link: LinkId, id: u64) -> Option<u64> {
        self.by_key.get(self.by_id.get(&(link, id))?).copied()
    }

    pub(super) fn disown(&mut self, link: LinkId, id: u64) {
        if let Some(key) = self.by_id.get(&(link, id)).copied() {
            self.unwant(&key);
        }
    }

    pub(super) fn unwant(&mut self, key: &Key) -> Option<Wanted> {
        let wanted = self.wanted.remove(key)?;
        self.by_id.remove(&(wanted.link, wanted.id));
        Some(wanted)
    }

    pub(super) fn remove(&mut self, cookie: u64) -> Option<Ending<S>> {
        let end = self.ends.remove(&cookie)?;
        let key = key(&end.conn);
        self.by_key.remove(&key);
        self.busy.remove(&cookie);
        self.unwant(&key);
        Some(end)
    }

    pub(super) fn send(&mut self, link: LinkId, id: u64, message: Message) {
        if self.links.contains_key(&link) {
            self.effects
                .push_back(Effect::Send(link, Letter { id, message }));
        }
    }
}

const NOT_SEALING: &str = "its mode does not seal connections between nodes";

fn advance(mut relay: Relay, bytes: &[u8]) -> anyhow::Result<(Vec<u8>, Stage)> {
    let progress = relay.take(bytes)?;
    let stage = if progress.finished {
        Stage::Keyed {
            peer: relay.peer_chain(),
            keys: Some(relay.keys()?),
            other_ready: false,
        }
    } else {
        Stage::Shaking(relay)
    };
    Ok((progress.send, stage))
}
