//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy.
//!
//! What their fields mean is said in Cilium's `pkg/policy/api`: a rule without peers and without ports allows nothing, an
//! empty list of peers nobody, and a list of rules that is empty does not restrict.

use super::{
    Notes,
    fields::{Fields, Wrong},
    policy::{Direction, Peer, Policy, Rule},
    ports,
    selector::{About, restricted, select, without_peer},
};

mod peers;

/// The policy of one `spec`; `None` if there is nothing that it restricts.
pub(super) fn policy(
    mut spec: Fields,
    (name, namespace): (String, Option<String>),
    notes: &mut Notes,
) -> Result<Option<Policy>, Wrong> {
    if spec.has("nodeSelector") {
        let why = "traffic of nodes themselves is not restricted here; the policy is left out";
        notes.detail(spec.at("nodeSelector"), why);
        return Ok(None);
    }
    let Some(endpoints) = spec.fields("endpointSelector")? else {
        notes.refuse(
            spec.at("endpointSelector"),
            "it is missing: whom is this about?",
        );
        return Ok(None);
    };
    let Some(selected) = restricted(endpoints, About::Endpoints, notes)? else {
        return Ok(None);
    };
    for key in ["ingressDeny", "egressDeny"] {
        if spec.maps(key)?.is_some_and(|rules| !rules.is_empty()) {
            notes.refuse(
                spec.at(key),
                "there are no deny rules here; more would be allowed",
            );
        }
    }
    for key in ["description", "labels"] {
        if spec.take(key).is_some() {
            notes.detail(spec.at(key), "it is about the policy, not about traffic");
        }
    }
    let mut denies = spec.fields("enableDefaultDeny")?;
    let own = namespace.is_some();
    let mut side = |direction| section(&mut spec, &mut denies, (direction, own), notes);
    let (ingress, egress) = (side(Direction::Ingress)?, side(Direction::Egress)?);
    let unknown = denies.iter().flat_map(Fields::rest).chain(spec.rest());
    for path in unknown.collect::<Vec<_>>() {
        notes.refuse(
            path,
            "this field is not known; more might be allowed without it",
        );
    }
    if ingress.is_none() && egress.is_none() {
        notes.detail(spec.path(), "it restricts nothing; the policy is left out");
        return Ok(None);
    }
    Ok(Some(Policy {
        name,
        namespace,
        select: selected,
        ingress,
        egress,
    }))
}

/// The rules of one direction; `None` if it is not restricted.
fn section(
    spec: &mut Fields,
    denies: &mut Option<Fields>,
    (direction, own): (Direction, bool),
    notes: &mut Notes,
) -> Result<Option<Vec<Rule>>, Wrong> {
    let key = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    let rules = spec.maps(key)?.unwrap_or_default();
    let stated = denies
        .as_mut()
        .map(|denies| denies.truth(key))
        .transpose()?;
    if !stated.flatten().unwrap_or(!rules.is_empty()) {
        if !rules.is_empty() {
            let why = "these rules allow without restricting (enableDefaultDeny: false), and here a policy that allows \
                       restricts too; they are left out";
            notes.less(spec.at(key), why);
        }
        return Ok(None);
    }
    let mut carried = Vec::new();
    for fields in rules {
        carried.extend(rule(fields, (direction, own), notes)?);
    }
    Ok(Some(carried))
}

/// A rule as one or two: with and without TLS.
fn rule(
    mut fields: Fields,
    side: (Direction, bool),
    notes: &mut Notes,
) -> Result<Vec<Rule>, Wrong> {
    let path = fields.path().to_owned();
    let peers = peers::read(&mut fields, side, notes)?;
    let is_whole = remainder_is_whole(&mut fields, notes)?;
    let mtls = authentication(&mut fields, notes)?;
    let at_ports = fields.at("toPorts");
    let ports = fields.maps("toPorts")?.filter(|list| !list.is_empty());
    let mut unknown = false;
    for path in fields.rest() {
        unknown = true;
        notes.less(path, "this field is not known; the rule is left out");
    }
    let entries = match ports {
        None => None,
        Some(list) => Some(ports::entries(list, notes)?),
    };
    let (Some(peers), Some(mtls), true, false) = (peers, mtls, is_whole, unknown) else {
        return Ok(Vec::new());
    };
    let rule = |ports, sealed| Rule {
        peers: peers.clone(),
        ports,
        mtls: mtls || sealed,
    };
    let Some(entries) = entries else {
        if peers.is_none() {
            notes.detail(
                path,
                "it names neither peers nor ports, so it allows nothing",
            );
            return Ok(Vec::new());
        }
        return Ok(vec![rule(None, false)]);
    };
    if entries.is_empty() {
        notes.less(at_ports, "no port is left; the rule is left out");
    }
    let split = [false, true].into_iter().filter_map(|sealed| {
        let of = entries.iter().filter(|entry| entry.mtls == sealed);
        let ports: Vec<_> = of.flat_map(|entry| entry.ports.clone()).collect();
        (!ports.is_empty()).then(|| rule(Some(ports), sealed))
    });
    Ok(split.collect())
}

/// Whether the rule can do without the fields that are no peers and no TCP or UDP ports.
fn remainder_is_whole(fields: &mut Fields, notes: &mut Notes) -> Result<bool, Wrong> {
    if fields.maps("icmps")?.is_some_and(|list| !list.is_empty()) {
        let why = "types of ICMP are not told apart; the rule is left out";
        notes.less(fields.at("icmps"), why);
        return Ok(false);
    }
    Ok(true)
}

/// Whether Cilium's mutual authentication is asked for; `None` if the rule cannot be carried over.
fn authentication(fields: &mut Fields, notes: &mut Notes) -> Result<Option<bool>, Wrong> {
    let Some(mut authentication) = fields.fields("authentication")? else {
        return Ok(Some(false));
    };
    let mode = authentication.text("mode")?;
    if let Some(path) = authentication.rest().first() {
        notes.less(path, "this field is not known; the rule is left out");
        return Ok(None);
    }
    Ok(match mode.as_deref() {
        Some("required") => Some(true),
        Some("disabled") => Some(false),
        _ => {
            let why = "neither `required` nor `disabled`; the rule is left out";
            notes.less(authentication.at("mode"), why);
            None
        }
    })
}
