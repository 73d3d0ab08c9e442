//! Kubernetes' own NetworkPolicy (networking.k8s.io/v1).

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Notes,
    fields::{Fields, Wrong},
    policy::{Direction, Peer, Policy, Rule, Select},
    ports,
    selector::{About, Selected, restricted, select, without_peer},
};

/// The policy of a `spec`; `None` if it has to be left out.
pub(super) fn policy(
    mut spec: Fields,
    (name, namespace): (String, Option<String>),
    notes: &mut Notes,
) -> Result<Option<Policy>, Wrong> {
    let pods = spec.fields("podSelector")?;
    let pods = pods.unwrap_or_else(|| Fields::none(spec.at("podSelector")));
    let Some(selected) = restricted(pods, About::Pods, notes)? else {
        return Ok(None);
    };
    let (ingress, egress) = (spec.maps("ingress")?, spec.maps("egress")?);
    let mut restricts = Restricts {
        ingress: true,
        egress: egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    };
    let types = spec.texts("policyTypes")?.unwrap_or_default();
    if !types.is_empty() {
        restricts = Restricts::of(types, notes);
    }
    for path in spec.rest() {
        notes.refuse(
            path,
            "this field is not known; more might be allowed without it",
        );
    }
    let at = (spec.at("ingress"), spec.at("egress"));
    let ingress = section(
        ingress,
        restricts.ingress,
        (Direction::Ingress, &at.0),
        notes,
    )?;
    let egress = section(egress, restricts.egress, (Direction::Egress, &at.1), notes)?;
    Ok(Some(Policy {
        name,
        namespace,
        select: selected,
        ingress,
        egress,
    }))
}

/// What `policyTypes` says, or what holds without it.
struct Restricts {
    ingress: bool,
    egress: bool,
}

impl Restricts {
    fn of(types: Vec<(String, String)>, notes: &mut Notes) -> Self {
        let mut restricts = Self {
            ingress: false,
            egress: false,
        };
        for (path, kind) in types {
            match kind.as_str() {
                "Ingress" => restricts.ingress = true,
                "Egress" => restricts.egress = true,
                _ => notes.refuse(path, "neither Ingress nor Egress"),
            }
        }
        restricts
    }
}

fn section(
    rules: Option<Vec<Fields>>,
    restricts: bool,
    (direction, at): (Direction, &str),
    notes: &mut Notes,
) -> Result<Option<Vec<Rule>>, Wrong> {
    let rules = rules.unwrap_or_default();
    if !restricts {
        if !rules.is_empty() {
            notes.detail(at, "policyTypes does not name it, so it does not count");
        }
        return Ok(None);
    }
    let mut carried = Vec::new();
    for fields in rules {
        carried.extend(rule(fields, direction, notes)?);
    }
    Ok(Some(carried))
}

fn rule(
    mut fields: Fields,
    direction: Direction,
    notes: &mut Notes,
) -> Result<Option<Rule>, Wrong> {
    let key = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let mut lost = false;
    let peers = match fields.maps(key)?.filter(|list| !list.is_empty()) {
        None => None,
        Some(list) => {
            let mut peers = Vec::new();
            for fields in list {
                peers.extend(peer(fields, notes)?);
            }
            if peers.is_empty() {
                lost = true;
                notes.less(fields.at(key), "nobody is left; the rule is left out");
            }
            Some(peers)
        }
    };
    let ports = ports::kubernetes(fields.maps("ports")?, notes)?;
    if ports.as_ref().is_some_and(Vec::is_empty) {
        lost = true;
        notes.less(fields.at("ports"), "no port is left; the rule is left out");
    }
    for path in fields.rest() {
        lost = true;
        notes.less(path, "this field is not known; the rule is left out");
    }
    let rule = Rule {
        peers,
        ports,
        mtls: false,
    };
    Ok((!lost).then_some(rule))
}

fn peer(mut fields: Fields, notes: &mut Notes) -> Result<Option<Peer>, Wrong> {
    if let Some(mut range) = fields.fields("ipBlock")? {
        let cidr = range.text("cidr")?.unwrap_or_default();
        let except = range.texts("except")?.unwrap_or_default();
        let unknown: Vec<String> = range.rest().into_iter().chain(fields.rest()).collect();
        for path in &unknown {
            notes.less(
                path,
                "it does not go with a range of addresses; this peer is left out",
            );
        }
        let peer = block(range.path(), &cidr, &except, notes);
        return Ok(peer.filter(|_| unknown.is_empty()));
    }
    let namespaces = fields.fields("namespaceSelector")?;
    let pods = fields.fields("podSelector")?;
    let unknown = fields.rest();
    for path in &unknown {
        notes.less(path, "this field is not known; this peer is left out");
    }
    if namespaces.is_none() && pods.is_none() {
        notes.less(fields.path(), "it names nobody; this peer is left out");
        return Ok(None);
    }
    let namespaces = namespaces.map(of_namespaces).transpose()?;
    let pods = pods.map(|pods| select(pods, About::Pods)).transpose()?;
    let mut selected = Select::default();
    let mut whole = unknown.is_empty();
    for part in [namespaces, pods].into_iter().flatten() {
        match part {
            Ok(part) => selected = selected.and(part),
            Err(lost) => {
                whole = false;
                without_peer(lost, notes);
            }
        }
    }
    Ok(whole.then(|| Peer::Select(selected.of_known(true))))
}

fn of_namespaces(fields: Fields) -> Result<Selected, Wrong> {
    let is_any = fields.is_empty();
    let selected = select(fields, About::Namespaces)?;
    Ok(selected.map(|selected| match selected {
        // Empty lists are as good as none.
        selected if is_any || selected == Select::default() => Select::any_namespace(),
        selected => selected,
    }))
}

/// A range of addresses, or one address, without those of `except`.
pub(super) fn block(
    path: &str,
    cidr: &str,
    except: &[(String, String)],
    notes: &mut Notes,
) -> Option<Peer> {
    let Some(network) = network(cidr) else {
        notes.less(
            path,
            format!("{cidr:?} is no range of addresses; this peer is left out"),
        );
        return None;
    };
    let mut without = Vec::new();
    for (path, text) in except {
        match self::network(text).filter(|one| network.contains(one) && *one != network) {
            Some(one) => without.push(one.to_string()),
            None => {
                let why = format!("{text:?} is no part of {network}; this peer is left out");
                notes.less(path, why);
                return None;
            }
        }
    }
    Some(Peer::Cidr {
        cidr: network.to_string(),
        except: without,
    })
}

fn network(text: &str) -> Option<IpNet> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    let network = text.parse::<IpNet>().ok().or_else(address)?;
    let network = network.trunc();
    let is_mapped = matches!(network, IpNet::V6(v6) if v6.prefix_len() >= 96 && v6.addr().to_ipv4_mapped().is_some());
    (!is_mapped).then_some(network)
}
