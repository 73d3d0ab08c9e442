//! The edge of [`super::super::renewal`]: what is done to sockets of connections that are open.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use anyhow::Context as _;
use rustls::pki_types::CertificateDer;
use tracing::{debug, warn};
use underseal_abi::{Conn, HelperCounter, Role as End, State};

use super::{Lent, LinkId, Outcome, Remote};
use crate::{
    Cipher, Relay, Role, SocketKeys,
    helper::{
        controls::Step,
        discover,
        drain::{Opened, Sent},
        handover::{self, Failure},
        limit,
        message::Renewal,
        names::Route,
        rekey,
        renewal::{Effect, Node, Search, Sought},
        table::{is_remote, key},
    },
    install, probe, set_notsent_lowat,
    sys::{Way, cipher_of},
};

impl Remote {
    /// This end's connection is to be verified again, and to get new keys where kernels replace them.
    pub(in crate::helper) fn renew(&mut self, conn: &Conn) {
        self.renewals.ask(conn);
    }

    /// Whether this kernel replaces keys.
    pub(in crate::helper) fn replaces_keys(&mut self) -> bool {
        replaces(&mut self.replaces)
    }

    /// This process ends: nobody stays held whose keys are whole.
    pub(in crate::helper) fn end(&mut self, lent: &mut Lent<'_>) -> Vec<Outcome> {
        let hands = &mut Hands::new(lent, &mut self.replaces);
        self.renewals.end(hands);
        self.carry_out(lent, Instant::now());
        std::mem::take(&mut self.outcomes)
    }

    pub(super) fn hear(
        &mut self,
        from: (LinkId, u64),
        said: Renewal,
        lent: &mut Lent<'_>,
        now: Instant,
    ) {
        let hands = &mut Hands::new(lent, &mut self.replaces);
        self.renewals.receive(from, said, hands, now);
    }

    pub(super) fn turn_renewals(&mut self, lent: &mut Lent<'_>, now: Instant) {
        let hands = &mut Hands::new(lent, &mut self.replaces);
        self.renewals.turn(hands, now);
    }

    pub(super) fn renewals_without(&mut self, link: LinkId, lent: &mut Lent<'_>) {
        let hands = &mut Hands::new(lent, &mut self.replaces);
        self.renewals.link_down(link, hands);
    }

    /// Carries out what they ask for.
    pub(super) fn carry_out_renewals(&mut self, lent: &mut Lent<'_>, now: Instant) {
        let mut searches = Vec::new();
        while let Some(effect) = self.renewals.effects.pop_front() {
            match effect {
                Effect::Send(id, letter) => {
                    if let Some(open) = self.links.get_mut(&id) {
                        open.link.queue(&letter);
                    }
                }
                Effect::Find(search) => searches.push(search),
                Effect::Reach(node) => self.connect(node, lent, now),
                Effect::Reset(conn, counter, why) => {
                    self.outcomes.push(Outcome::Reset(conn, counter, why));
                }
            }
        }
        if searches.is_empty() {
            return;
        }
        for (search, found) in searches.iter().zip(lent.sealed(&searches)) {
            let found = found.unwrap_or_else(|error| {
                warn!("a connection is not verified again now: {error}");
                None
            });
            let hands = &mut Hands::new(lent, &mut self.replaces);
            self.renewals.found(search, found, hands, now);
        }
    }
}

impl Lent<'_> {
    /// The sealed ends that are looked for, with their sockets. The table and each process are read once for all.
    fn sealed(&self, searches: &[Search]) -> Vec<io::Result<Option<(Conn, OwnedFd)>>> {
        let is_named = |search: &Search| matches!(search.sought, Sought::Named(..));
        let named = match searches.iter().any(is_named) {
            true => self.maps.conns(),
            false => Ok(Vec::new()),
        };
        let named = match named {
            Ok(conns) => conns,
            Err(error) => {
                warn!("cannot read the table of connections: {error}");
                Vec::new()
            }
        };
        let named = named.into_iter().filter(is_remote);
        let named: HashMap<_, Conn> = named.map(|conn| (key(&conn), conn)).collect();
        let conns = searches.iter().map(|search| match search.sought {
            Sought::Own(conn) => Some(conn),
            Sought::Named(key, _) => named.get(&key).copied(),
        });
        let conns: Vec<Option<Conn>> = conns.collect();
        let known: Vec<Conn> = conns.iter().copied().flatten().collect();
        let mut found = discover::now(self.maps, &known).into_iter();
        let mut next = |conn: Conn| {
            let Some(socket) = found.next().transpose()?.flatten() else {
                return Ok(None);
            };
            let is_sealed = self.maps.state(socket.as_fd())? == Some(State::Sealed);
            Ok(is_sealed.then_some((conn, socket)))
        };
        let found = conns.into_iter().map(|conn| match conn {
            Some(conn) => next(conn),
            None => Ok(None),
        });
        found.collect()
    }
}

/// What [`Node`] asks for.
struct Hands<'a, 'b> {
    lent: &'a mut Lent<'b>,
    replaces: &'a mut Option<bool>,
}

impl<'a, 'b> Hands<'a, 'b> {
    const fn new(lent: &'a mut Lent<'b>, replaces: &'a mut Option<bool>) -> Self {
        Self { lent, replaces }
    }
}

impl Node<OwnedFd> for Hands<'_, '_> {
    fn relay(&self, conn: &Conn, socket: &OwnedFd, role: Role) -> anyhow::Result<Relay> {
        let number = cipher_of(socket.as_fd(), Way::Send).context("its cipher")?;
        let cipher = Cipher::from_number(number).context("its cipher is unknown")?;
        let (maps, peers) = (&*self.lent.maps, self.lent.peers);
        peers.relay_with(maps, conn, role, Some(cipher))
    }

    fn replaces_keys(&mut self) -> bool {
        !self.lent.controls.no_rekey && replaces(self.replaces)
    }

    fn note(&mut self, conn: &Conn, peer: &[CertificateDer<'static>]) -> anyhow::Result<()> {
        let noted = self.lent.maps.note_seal(conn, peer);
        noted.context("cannot note with whom it is sealed")
    }

    fn count(&mut self, counter: HelperCounter) {
        self.lent.maps.count(counter, 1);
    }

    fn hold(&mut self, conn: &Conn, socket: &OwnedFd) -> Result<(), Failure> {
        rekey::pause(self.lent.maps, conn, socket.as_fd())?;
        self.lent.controls.reached(Step::Pausing);
        Ok(())
    }

    fn sent(&mut self, socket: &OwnedFd) -> Result<Sent, Failure> {
        set_notsent_lowat(socket.as_fd(), 0)?;
        Ok(Sent::by(socket.as_fd())?)
    }

    fn pulse(&mut self, socket: &OwnedFd) -> Result<(), Failure> {
        Ok(set_notsent_lowat(socket.as_fd(), 1)?)
    }

    fn replacing(&mut self, _: &Conn, socket: &OwnedFd) -> Result<(), Failure> {
        Ok(self.lent.maps.set_state(socket.as_fd(), State::Replacing)?)
    }

    fn opened(&self, socket: &OwnedFd) -> Result<Opened, Failure> {
        Ok(Opened::by(socket.as_fd())?)
    }

    fn receive_with(&mut self, socket: &OwnedFd, keys: &SocketKeys) -> Result<(), Failure> {
        install::install_rx(socket.as_fd(), &keys.rx)?;
        self.lent.controls.reached(Step::Half);
        Ok(())
    }

    fn send_with(
        &mut self,
        conn: &Conn,
        socket: &OwnedFd,
        keys: &SocketKeys,
    ) -> Result<(), Failure> {
        install::install_tx(socket.as_fd(), &keys.tx)?;
        limit::begin(self.lent.maps, socket.as_fd(), keys.tx.cipher())?;
        self.lent.controls.reached(Step::Replaced);
        let sender = match conn.role == End::Client as u32 {
            true => "client",
            false => "server",
        };
        debug!("rekeyed {}, what the {sender} sends", Route(conn));
        Ok(())
    }

    fn release(&mut self, conn: &Conn, socket: &OwnedFd) -> Result<(), Failure> {
        handover::release_end(self.lent.maps, conn, socket.as_fd())
    }
}

/// Whether this kernel replaces keys: it is asked once. One that cannot be asked does not.
fn replaces(known: &mut Option<bool>) -> bool {
    *known.get_or_insert_with(|| {
        probe::replaces_keys().unwrap_or_else(|error| {
            warn!("{error}; keys of connections between nodes are not replaced");
            false
        })
    })
}
