//! An agent to test with: speaks the official Workload API on a unix socket, and says what it is told to over its standard
//! input. Not for use: it gives identities to whoever asks.
//!
//!     spire-agent SOCKET SPIFFE_ID...
//!
//! | line | |
//! |---|---|
//! | `say` | new SVIDs for all IDs, by the CA of now |
//! | `ca` | another CA: from now on both are trusted; SVIDs stay |
//! | `switch` | new SVIDs, by that CA |
//! | `finish` | the CA before is trusted no longer |
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::HashMap, env, io, path::PathBuf};

use support::{
    agent::Agent,
    ca::{Ca, message},
    workload::{X509BundlesResponse, X509svid},
};

#[path = "../tests/spire/support"]
mod support {
    #[allow(dead_code, reason = "the tests use more of it")]
    pub(crate) mod agent;
    #[allow(dead_code, reason = "the tests use more of it")]
    pub(crate) mod ca;
    #[rustfmt::skip]
    #[allow(
        clippy::all,
        clippy::too_many_lines,
        unreachable_pub,
        reason = "generated: see proto/workload.proto"
    )]
    pub(crate) mod workload;
}

fn main() {
    let mut arguments = env::args().skip(1);
    let socket: PathBuf = arguments.next().expect("SOCKET SPIFFE_ID...").into();
    let mut server = Server {
        agent: Agent::start(socket),
        ids: arguments.collect(),
        trusted: vec![Ca::new()],
        active: 0,
        svids: Vec::new(),
    };
    server.issue();
    for line in io::stdin().lines().map_while(Result::ok) {
        match line.as_str() {
            "say" => server.issue(),
            "ca" => server.trusted.push(Ca::new()),
            "switch" => {
                server.active = server.trusted.len() - 1;
                server.issue();
            }
            "finish" => {
                server.trusted.drain(..server.active);
                server.active = 0;
            }
            other => panic!("{other}: not a line that it knows"),
        }
        server.say();
    }
}

/// What SPIRE's server knows, and its agent.
struct Server {
    agent: Agent,
    ids: Vec<String>,
    trusted: Vec<Ca>,
    active: usize,
    svids: Vec<X509svid>,
}

impl Server {
    fn issue(&mut self) {
        let ca = &self.trusted[self.active];
        self.svids = self.ids.iter().map(|id| ca.svid(id)).collect();
        self.say();
    }

    fn say(&mut self) {
        let bundle = self.trusted.iter().map(Ca::bundle).collect::<Vec<_>>();
        let bundle = bundle.concat();
        for svid in &mut self.svids {
            svid.bundle.clone_from(&bundle);
        }
        self.agent.say(message(self.svids.clone()));
        let domain = "spiffe://example.org".to_owned();
        self.agent.say_bundles(X509BundlesResponse {
            bundles: HashMap::from([(domain, bundle)]),
            crl: Vec::new(),
        });
    }
}
