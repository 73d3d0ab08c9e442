//! The list of cases.

use std::io::Write as _;

use anyhow::Result;

use crate::data::{self, Turn, talk};
use crate::lab::Side;
use crate::{odd, passing, processes, signals, storm, uring};

/// What a half of a case does.
pub(crate) type Half = fn(&mut Side) -> Result<()>;

/// Where the halves are, and whether sealing lets them succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In two workloads; works sealed as it does plain.
    Apart,
    /// Both in the client's; works as well.
    Inside,
    /// In two workloads; sealed, it ends in a reset.
    Refused,
    /// In two workloads; takes all processors for a while.
    Storm,
}

/// Which families a case is run over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Families {
    Both,
    /// It takes seconds, and the family makes no difference.
    V4,
}

/// A case.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) families: Families,
    pub(crate) client: Half,
    pub(crate) server: Half,
    /// Counters of Underseal that grow by one when it runs sealed.
    pub(crate) counters: &'static [&'static str],
}

const fn apart(name: &'static str, client: Half, server: Half) -> Case {
    Case {
        name,
        kind: Kind::Apart,
        families: Families::Both,
        client,
        server,
        counters: &[],
    }
}

const fn v4(name: &'static str, client: Half, server: Half) -> Case {
    Case {
        families: Families::V4,
        ..apart(name, client, server)
    }
}

/// Works, with a refusal that the programs get around.
const fn counted(
    name: &'static str,
    counters: &'static [&'static str],
    client: Half,
    server: Half,
) -> Case {
    Case {
        counters,
        ..apart(name, client, server)
    }
}

const fn inside(name: &'static str, client: Half, server: Half) -> Case {
    Case {
        kind: Kind::Inside,
        ..apart(name, client, server)
    }
}

/// Ends in one reset, which this counter counts.
const fn refused(
    name: &'static str,
    counters: &'static [&'static str],
    client: Half,
    server: Half,
) -> Case {
    Case {
        kind: Kind::Refused,
        families: Families::V4,
        counters,
        ..apart(name, client, server)
    }
}

pub(crate) const CASES: &[Case] = &[
    apart("simple", client, server),
    apart("fork_after_accept", client, processes::fork_after_accept),
    apart(
        "pre_forked_accept",
        processes::three_clients,
        processes::pre_forked_accept,
    ),
    apart("fork_after_connect", processes::fork_after_connect, server),
    apart(
        "dup_close_first",
        processes::dup_close_first,
        processes::dup2_close_first,
    ),
    apart("exec", processes::exec, server),
    apart("reuse_port", processes::both_servers, processes::reuse_port),
    apart("threads", processes::many_clients, processes::thread_each),
    apart("pass_client", passing::client, server),
    apart("pass_server", client, passing::server),
    apart(
        "client_in_flight",
        passing::client_in_flight,
        passing::tells_when_found,
    ),
    apart(
        "server_in_flight",
        passing::tells_when_client_found,
        passing::server_in_flight,
    ),
    refused(
        "lost_in_flight",
        &["reset_lost"],
        passing::client_lost,
        passing::server_of_lost,
    ),
    refused(
        "closed_asleep",
        &["reset_lost"],
        passing::closed_asleep,
        server_of_reset,
    ),
    refused(
        "replaced_asleep",
        &["reset_restart"],
        passing::replaced_asleep,
        server_of_reset,
    ),
    apart("signal_receiving", signals::receiving, signals::greets),
    apart("signal_sending", signals::sending, signals::takes_much),
    apart("signal_waiting", signals::waiting, signals::greets),
    apart(
        "signal_accepting",
        signals::connects_twice,
        signals::accepting,
    ),
    v4(
        "signal_connecting",
        signals::connecting,
        signals::full_queue,
    ),
    apart("signal_storm", signals::storm, signals::greets_storm),
    apart("stopped", signals::stopped, signals::server_of_stopped),
    refused(
        "debugged",
        &["reset_restart"],
        signals::debugged,
        signals::server_of_debugged,
    ),
    refused(
        "debugger_stopped",
        &["reset_restart"],
        signals::debugger_stopped,
        signals::server_of_debugged,
    ),
    apart("uring_client", uring::client, server),
    apart("uring_server", client, uring::server),
    apart("uring_registered", uring::registered_client, server),
    apart(
        "uring_multishot",
        uring::two_clients,
        uring::multishot_server,
    ),
    apart(
        "uring_asynchronous",
        uring::asynchronous_send,
        uring::told_server,
    ),
    refused(
        "uring_splice",
        &["reset_restart"],
        uring::splice,
        server_of_reset,
    ),
    refused(
        "uring_direct_client",
        &["reset_lost"],
        uring::direct_client,
        server_of_reset,
    ),
    refused(
        "uring_direct_server",
        &["reset_lost"],
        uring::client_of_direct,
        uring::direct_server,
    ),
    v4("keep_alive", odd::kept_alive, odd::kept_alive_server),
    counted(
        "mptcp",
        &["refused_mptcp"; 2],
        odd::mptcp_client,
        odd::mptcp_server,
    ),
    counted(
        "fast_open_message",
        &["refused_fast_open"; 3],
        odd::fast_open_message,
        odd::fast_open_server,
    ),
    counted(
        "fast_open_connect",
        &["refused_fast_open"; 3],
        odd::fast_open_connect,
        odd::fast_open_server,
    ),
    Case {
        kind: Kind::Storm,
        ..v4("storm", storm::client, storm::server)
    },
    inside("own_address", client, server),
    inside("loopback", client, server),
    inside("own_one_thread", processes::to_itself, nothing),
    inside("loopback_one_thread", processes::to_itself, nothing),
    inside(
        "own_not_blocking",
        processes::to_itself_not_blocking,
        nothing,
    ),
    inside("own_sends_first", processes::to_itself_sends_first, nothing),
];

/// The plainest client.
pub(crate) fn client(side: &mut Side) -> Result<()> {
    talk(&side.connect()?, Turn::Speak)
}

/// The plainest server.
pub(crate) fn server(side: &mut Side) -> Result<()> {
    let listener = side.listen()?;
    talk(&listener.accept()?.0, Turn::Listen)
}

/// One that says a little once it is told to accept. A sealed connection is reset.
pub(crate) fn server_of_reset(side: &mut Side) -> Result<()> {
    let mut socket = side.accept_when_told()?;
    if side.is_sealed() {
        return passing::ensure_reset(&socket);
    }
    socket.write_all(&data::stream(data::SPEAKER, 1000))?;
    side.hear("read")
}

/// The client does it all.
fn nothing(_: &mut Side) -> Result<()> {
    Ok(())
}
