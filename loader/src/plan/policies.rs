//! Steps of network policies: who is known to them, which DNS names are asked for, the rules themselves.

use std::{collections::BTreeSet, net::IpAddr};

use super::Stage;
use crate::{
    op::{DatapathOp, Op},
    state::{Datapath, Named},
};

/// Before the addresses of new workloads: whoever has one is known to the policies. That there are none any more opens.
/// Which DNS names are asked for more is set before the rules that rely on them, which no more after them.
pub(super) fn stage(wanted: &Datapath, found: &Datapath, stage: &mut Stage) {
    for (ip, workload) in &wanted.peer_workloads {
        if found.peer_workloads.get(ip) != Some(workload) {
            let set = DatapathOp::SetPeerWorkload(*ip, workload.clone());
            stage.add.push(set.into());
        }
    }
    let gone = |ip: &&IpAddr| !wanted.peer_workloads.contains_key(ip);
    for ip in found.peer_workloads.keys().filter(gone) {
        stage
            .remove
            .push(DatapathOp::DeletePeerWorkload(*ip).into());
    }
    let (more, fewer) = dns_names(wanted, found);
    stage.add.extend(more);
    if wanted.policies != found.policies {
        let set = DatapathOp::SetPolicies(wanted.policies.clone()).into();
        match &wanted.policies {
            Some(_) => stage.add.push(set),
            None => stage.remove.push(set),
        }
    }
    stage.remove.extend(fewer);
}

/// What is added to the names that are asked for, and what is taken away.
fn dns_names(wanted: &Datapath, found: &Datapath) -> (Vec<Op>, Vec<Op>) {
    let all: BTreeSet<&Named> = wanted
        .dns_names
        .keys()
        .chain(found.dns_names.keys())
        .collect();
    let nothing = BTreeSet::new();
    let (mut more, mut fewer) = (Vec::new(), Vec::new());
    for whose in all {
        let names = |of: &Datapath| of.dns_names.get(whose).unwrap_or(&nothing).clone();
        let (wanted, found) = (names(wanted), names(found));
        let both: BTreeSet<_> = wanted.union(&found).cloned().collect();
        if both != found {
            more.push(DatapathOp::SetDnsNames(*whose, both.clone()).into());
        }
        if both != wanted {
            fewer.push(DatapathOp::SetDnsNames(*whose, wanted).into());
        }
    }
    (more, fewer)
}
