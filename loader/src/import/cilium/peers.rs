//! Whom a rule of Cilium's is about.

use super::{About, Direction, Fields, Notes, Peer, Wrong, select, without_peer};
use crate::import::kubernetes::block;

/// The peers of a rule of a policy which has its own namespace or not: `Some(None)` if it is about anybody, `None` if it has to be left out.
pub(super) fn read(
    fields: &mut Fields,
    (direction, own): (Direction, bool),
    notes: &mut Notes,
) -> Result<Option<Option<Vec<Peer>>>, Wrong> {
    let prefix = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let key = |what: &str| format!("{prefix}{what}");
    let requires = key("Requires");
    if fields.take(&requires).is_some() {
        let why = "it narrows what other rules allow; more would be allowed without it";
        notes.refuse(fields.at(&requires), why);
    }
    let kinds = KINDS.map(key);
    let there: Vec<&String> = kinds.iter().filter(|kind| fields.has(kind)).collect();
    if let [_, second, ..] = there[..] {
        let why = "Cilium does not combine it with the others; the rule is left out";
        notes.less(fields.at(second), why);
        for kind in &kinds {
            fields.take(kind);
        }
        return Ok(None);
    }
    let Some(kind) = there.first() else {
        return Ok(Some(None));
    };
    let kind = kind.as_str();
    let before = notes.0.len();
    let peers = match kind.trim_start_matches(prefix) {
        "Endpoints" => endpoints(fields, (kind, own), notes)?,
        "Entities" => entities(fields, kind, notes)?,
        "CIDR" => addresses(fields, kind, notes)?,
        "CIDRSet" => blocks(fields, kind, notes)?,
        other => {
            fields.take(kind);
            notes.less(
                fields.at(kind),
                format!("{}; the rule is left out", reason(other)),
            );
            return Ok(None);
        }
    };
    if peers.is_empty() {
        if notes.0.len() == before {
            notes.detail(fields.at(kind), "the list is empty: the rule allows nobody");
        } else {
            notes.less(fields.at(kind), "nobody is left; the rule is left out");
        }
        return Ok(None);
    }
    Ok(Some(Some(peers)))
}

fn reason(kind: &str) -> &'static str {
    match kind {
        "Nodes" => "nodes themselves are no workloads",
        "FQDNs" => "names in the DNS are not resolved",
        "Services" => "services are not known",
        _ => "groups of a cloud are not known",
    }
}

fn endpoints(
    fields: &mut Fields,
    (key, own): (&str, bool),
    notes: &mut Notes,
) -> Result<Vec<Peer>, Wrong> {
    let mut peers = Vec::new();
    for endpoint in fields.maps(key)?.unwrap_or_default() {
        if let Some(entity) = reserved(&endpoint)? {
            peers.extend(of_entity(&entity, endpoint.path(), notes));
            continue;
        }
        match select(endpoint, About::Endpoints)? {
            Ok(selected) => peers.push(Peer::Select(selected.of_known(own))),
            Err(lost) => without_peer(lost, notes),
        }
    }
    Ok(peers)
}

/// `reserved:NAME` as the only label is another way to write the entity.
fn reserved(endpoint: &Fields) -> Result<Option<String>, Wrong> {
    let mut endpoint = endpoint.clone();
    let labels = endpoint.pairs("matchLabels")?;
    let [(_, key, value)] = labels.as_slice() else {
        return Ok(None);
    };
    let name = key.strip_prefix("reserved:").filter(|_| value.is_empty());
    Ok(name.filter(|_| endpoint.rest().is_empty()).map(Into::into))
}

fn entities(fields: &mut Fields, key: &str, notes: &mut Notes) -> Result<Vec<Peer>, Wrong> {
    let mut peers = Vec::new();
    for (path, entity) in fields.texts(key)?.unwrap_or_default() {
        peers.extend(of_entity(&entity, &path, notes));
    }
    Ok(peers)
}

fn of_entity(entity: &str, path: &str, notes: &mut Notes) -> Vec<Peer> {
    let everywhere = |cidr: &str| Peer::Cidr {
        cidr: cidr.into(),
        except: Vec::new(),
    };
    match entity {
        "all" => vec![Peer::Entity("all")],
        // Not `entity = "world"`: that is everybody but workloads, and this node itself is no world to Cilium.
        "world" => vec![everywhere("0.0.0.0/0"), everywhere("::/0")],
        "world-ipv4" => vec![everywhere("0.0.0.0/0")],
        "world-ipv6" => vec![everywhere("::/0")],
        "host" => vec![Peer::Entity("host")],
        "cluster" => {
            let why = "of the cluster, the workloads and this node itself are meant here";
            notes.less(path, why);
            vec![Peer::Entity("workloads"), Peer::Entity("host")]
        }
        other => {
            let why = format!("{other:?} has no counterpart; this peer is left out");
            notes.less(path, why);
            Vec::new()
        }
    }
}

fn addresses(fields: &mut Fields, key: &str, notes: &mut Notes) -> Result<Vec<Peer>, Wrong> {
    let mut peers = Vec::new();
    for (path, cidr) in fields.texts(key)?.unwrap_or_default() {
        peers.extend(block(&path, &cidr, &[], notes));
    }
    Ok(peers)
}

fn blocks(fields: &mut Fields, key: &str, notes: &mut Notes) -> Result<Vec<Peer>, Wrong> {
    let mut peers = Vec::new();
    for mut set in fields.maps(key)?.unwrap_or_default() {
        let cidr = set.text("cidr")?;
        let except = set.texts("except")?.unwrap_or_default();
        let mut unknown = false;
        for path in set.rest() {
            unknown = true;
            notes.less(path, "it has no counterpart; this peer is left out");
        }
        match cidr.filter(|_| !unknown) {
            Some(cidr) => peers.extend(block(set.path(), &cidr, &except, notes)),
            None if unknown => {}
            None => notes.less(set.at("cidr"), "it is missing; this peer is left out"),
        }
    }
    Ok(peers)
}

/// What may stand behind `from` or `to`; one at a time (`pkg/policy/api/rule_validation.go`).
const KINDS: [&str; 8] = [
    "Endpoints",
    "Entities",
    "CIDR",
    "CIDRSet",
    "Nodes",
    "Groups",
    "FQDNs",
    "Services",
];
