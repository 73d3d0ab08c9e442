//! What a session does about other nodes, and when the mode changes: it goes on with connections whose other end is
//! elsewhere, and lets go of ends that nobody will seal any more.

use std::os::fd::AsFd;

use tracing::{debug, error};
use underseal_abi::{Conn, HelperCounter};

use anyhow::Result;

use super::{
    handover,
    names::Route,
    nodes::Nodes,
    remote::{Lent, Outcome, Remote},
    session::Session,
};

impl Session {
    /// After a start and after each apply: the mode may be another one, and nodes elsewhere.
    ///
    /// # Errors
    /// As [`Session::take_events`].
    pub(super) fn configure(&mut self) -> Result<()> {
        let nodes = Nodes::new(self.maps.nodes());
        let (remote, mut lent) = self.lend();
        remote.configure(nodes, &mut lent);
        self.peers.configure(self.maps.bundles());
        self.review.ask();
        self.rekeys.ask();
        // What was established before is known here only after this.
        self.take_events()?;
        for conn in self.table.alone() {
            self.let_go_alone(&conn);
        }
        Ok(())
    }

    /// An end of a connection inside this node that is held alone, while new ones like it are not:
    /// the mode was changed between its two ends, and the other one has been, or will be, let go.
    pub(super) fn let_go_alone(&mut self, conn: &Conn) {
        if self.maps.mode().seals_same_node() || self.table.other_end(conn).is_some() {
            return;
        }
        if let Some((conn, socket)) = self.table.take_alone(conn.cookie)
            && let Err(failure) = handover::let_go(&mut self.maps, &conn, socket.as_fd())
        {
            self.give_up(&conn, failure.counter(), &failure.to_string());
        }
    }

    /// Goes on with connections to other nodes. Of an end that is gone the other node may have said
    /// why, just before its reset arrived: letters are read before the end is forgotten.
    pub(super) fn talk(&mut self, ready: &[bool]) {
        if self.gone.is_empty() {
            return self.turn(ready);
        }
        let all = vec![true; self.remote.descriptors().count()];
        self.turn(&all);
        for conn in std::mem::take(&mut self.gone) {
            self.remote.closed(&conn);
        }
        self.turn(&[]);
    }

    fn turn(&mut self, ready: &[bool]) {
        let (remote, mut lent) = self.lend();
        let outcomes = remote.turn(ready, &mut lent);
        self.take_outcomes(outcomes);
    }

    /// This process ends: nobody of a connection with another node stays held whose keys are whole.
    pub(super) fn stop_renewals(&mut self) {
        let (remote, mut lent) = self.lend();
        let outcomes = remote.end(&mut lent);
        self.take_outcomes(outcomes);
    }

    fn lend(&mut self) -> (&mut Remote, Lent<'_>) {
        let lent = Lent {
            maps: &mut self.maps,
            peers: &self.peers,
            table: &self.table,
            controls: &self.controls,
        };
        (&mut self.remote, lent)
    }

    fn take_outcomes(&mut self, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            match outcome {
                Outcome::Sealed(conn) => {
                    self.maps.count(HelperCounter::Sealed, 1);
                    debug!("sealed {}", Route(&conn));
                }
                Outcome::LetGo(conn) => debug!("let go {}", Route(&conn)),
                Outcome::Reset(conn, counter, why) => {
                    self.maps.count(counter, 1);
                    error!("reset {}: {why}", Route(&conn));
                    self.destroy(&conn, None);
                }
            }
        }
    }
}
