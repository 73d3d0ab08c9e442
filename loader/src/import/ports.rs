//! Ports of policies: Cilium's `toPorts` with what belongs to it, and Kubernetes' `ports`.

use serde_json::Value;

use super::{
    Notes,
    fields::{Fields, Wrong},
    policy::Port,
};

/// One element of `toPorts`.
pub(super) struct Entry {
    pub(super) ports: Vec<Port>,
    /// TLS is asked for.
    pub(super) mtls: bool,
}

/// Cilium's `toPorts`: the elements of which nothing is lost.
pub(super) fn entries(list: Vec<Fields>, notes: &mut Notes) -> Result<Vec<Entry>, Wrong> {
    let mut entries = Vec::new();
    for fields in list {
        entries.extend(entry(fields, notes)?);
    }
    Ok(entries)
}

fn entry(mut fields: Fields, notes: &mut Notes) -> Result<Option<Entry>, Wrong> {
    let mut mtls = false;
    for side in ["originatingTLS", "terminatingTLS"] {
        let Some(tls) = fields.fields(side)? else {
            continue;
        };
        mtls = true;
        for path in tls.rest() {
            notes.detail(path, "a workload's keys and CAs are in its identity folder");
        }
    }
    let mut narrowed = narrows(&mut fields, notes)?;
    let ports = fields.maps("ports")?.unwrap_or_default();
    for path in fields.rest() {
        narrowed = true;
        notes.less(path, "this field is not known; these ports are left out");
    }
    if narrowed {
        return Ok(None);
    }
    if ports.is_empty() {
        notes.less(
            fields.at("ports"),
            "there are none; the element is left out",
        );
        return Ok(None);
    }
    let mut carried = Vec::new();
    for port in ports {
        carried.extend(cilium_port(port, notes)?);
    }
    let entry = Entry {
        ports: carried,
        mtls,
    };
    Ok((!entry.ports.is_empty()).then_some(entry))
}

/// Whether less is allowed than the ports say, by the contents of the traffic.
fn narrows(fields: &mut Fields, notes: &mut Notes) -> Result<bool, Wrong> {
    let Some(mut rules) = fields.fields("rules")? else {
        return Ok(false);
    };
    // All names of DNS may be asked for: nothing is narrowed.
    let mut every_name = rules.clone();
    if let Some([only]) = every_name.maps("dns")?.as_deref()
        && every_name.rest().is_empty()
    {
        let mut only = only.clone();
        if only.text("matchPattern")?.as_deref() == Some("*") && only.rest().is_empty() {
            notes.detail(
                rules.at("dns"),
                "every name is allowed, which the ports say already",
            );
            return Ok(false);
        }
    }
    // `rules: {}` says nothing.
    let mut narrowed = false;
    for kind in ["http", "kafka", "dns", "l7", "l7proto"] {
        if rules.take(kind).is_some() {
            narrowed = true;
            let why = "what is inside of a connection is not looked at; these ports are left out";
            notes.less(rules.at(kind), why);
        }
    }
    for path in rules.rest() {
        narrowed = true;
        notes.less(path, "this field is not known; these ports are left out");
    }
    Ok(narrowed)
}

fn cilium_port(mut fields: Fields, notes: &mut Notes) -> Result<Option<Port>, Wrong> {
    let at = fields.at("port");
    let port = match fields.take("port") {
        Some(Value::String(text)) => Some(text),
        Some(Value::Number(number)) => Some(number.to_string()),
        Some(_) => return Err(Wrong(format!("{at}: a port is wanted here"))),
        None => None,
    };
    let end = fields.port("endPort")?.filter(|end| *end != 0);
    let protocol = match fields.text("protocol")?.as_deref() {
        None | Some("ANY") => None,
        Some(protocol) => match known(protocol) {
            Some(known) => Some(known),
            None => return Ok(lost(&fields, "protocol", notes)),
        },
    };
    if let Some(path) = fields.rest().first() {
        notes.less(path, "this field is not known; this port is left out");
        return Ok(None);
    }
    let port = match port.as_deref().map(str::parse::<u16>) {
        // Cilium: all ports.
        Some(Ok(0)) if end.is_none() => None,
        Some(Ok(port)) if port != 0 => Some(port),
        None | Some(_) => return Ok(lost(&fields, "port", notes)),
    };
    Ok(range(&fields, port, end, notes).map(|end| Port {
        port,
        end,
        protocol,
    }))
}

/// Kubernetes' `ports`: those that can be carried over; `None` if all ports are meant.
pub(super) fn kubernetes(
    list: Option<Vec<Fields>>,
    notes: &mut Notes,
) -> Result<Option<Vec<Port>>, Wrong> {
    let Some(list) = list.filter(|list| !list.is_empty()) else {
        return Ok(None);
    };
    let mut ports = Vec::new();
    for fields in list {
        ports.extend(kubernetes_port(fields, notes)?);
    }
    Ok(Some(ports))
}

fn kubernetes_port(mut fields: Fields, notes: &mut Notes) -> Result<Option<Port>, Wrong> {
    let protocol = fields.text("protocol")?.unwrap_or_else(|| "TCP".into());
    let Some(protocol) = known(&protocol) else {
        return Ok(lost(&fields, "protocol", notes));
    };
    let mut named = fields.clone();
    if matches!(named.take("port"), Some(Value::String(_))) {
        return Ok(lost(&fields, "port", notes));
    }
    let (port, end) = (fields.port("port")?, fields.port("endPort")?);
    if let Some(path) = fields.rest().first() {
        notes.less(path, "this field is not known; this port is left out");
        return Ok(None);
    }
    if port == Some(0) {
        return Ok(lost(&fields, "port", notes));
    }
    Ok(range(&fields, port, end, notes).map(|end| Port {
        port,
        end,
        protocol: Some(protocol),
    }))
}

/// The end of a range, if it is one.
fn range(
    fields: &Fields,
    port: Option<u16>,
    end: Option<u16>,
    notes: &mut Notes,
) -> Option<Option<u16>> {
    match (port, end) {
        (_, None) => Some(None),
        (Some(port), Some(end)) if port == end => Some(None),
        (Some(port), Some(end)) if port < end => Some(Some(end)),
        _ => {
            notes.less(fields.at("endPort"), "this is no range; it is left out");
            None
        }
    }
}

fn known(protocol: &str) -> Option<&'static str> {
    match protocol {
        "TCP" => Some("tcp"),
        "UDP" => Some("udp"),
        "SCTP" => Some("sctp"),
        _ => None,
    }
}

fn lost(fields: &Fields, key: &str, notes: &mut Notes) -> Option<Port> {
    let why = match key {
        "protocol" => "only TCP, UDP and SCTP have ports here; this port is left out",
        _ => "a port is a number here, not a name; this port is left out",
    };
    notes.less(fields.at(key), why);
    None
}
