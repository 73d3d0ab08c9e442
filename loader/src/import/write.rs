//! The configuration as text. Comments say what each object lacks, so they are written by hand; every value goes through
//! the toml crate, and no comment has a second line, whatever a manifest has in it.

use std::fmt::Write as _;

use super::{
    certificate::{Authority, Workload},
    policy::{Peer, Policy, Port, Rule, Select},
};

/// What one object has become.
pub(super) struct Section {
    title: String,
    pub(super) notes: Vec<String>,
    pub(super) policies: Vec<Policy>,
    pub(super) workload: Option<Workload>,
}

impl Section {
    pub(super) fn of(file: &str, object: &str) -> Self {
        Self {
            title: format!("{object} ({file})"),
            notes: Vec::new(),
            policies: Vec::new(),
            workload: None,
        }
    }
}

/// All of it.
pub(super) fn toml(authority: &Authority, sections: &[Section]) -> String {
    let mut out = String::new();
    let settings = [
        ("lifetime", authority.lifetime()),
        ("renew_before", authority.renew_before()),
        ("key", authority.key.map(Into::into)),
    ];
    if settings.iter().any(|(_, value)| value.is_some()) {
        out.push_str("[pki]\n");
        for (key, value) in settings {
            if let Some(value) = value {
                line(&mut out, key, &quoted(&value));
            }
        }
    }
    for section in sections {
        if !out.is_empty() {
            out.push('\n');
        }
        comment(&mut out, &section.title);
        for note in &section.notes {
            comment(&mut out, &format!("not carried over: {note}"));
        }
        for (number, it) in section.policies.iter().enumerate() {
            if number > 0 {
                out.push('\n');
            }
            policy(&mut out, it);
        }
        section
            .workload
            .iter()
            .for_each(|it| workload(&mut out, it));
    }
    out
}

fn policy(out: &mut String, policy: &Policy) {
    out.push_str("[[network_policy]]\n");
    line(out, "name", &quoted(&policy.name));
    if let Some(namespace) = &policy.namespace {
        line(out, "namespace", &quoted(namespace));
    }
    line(out, "select", &select(&policy.select));
    let sides = [("ingress", &policy.ingress), ("egress", &policy.egress)];
    // What denies all has to stand before the tables.
    for (key, rules) in sides {
        if rules.as_ref().is_some_and(Vec::is_empty) {
            line(out, key, "[]");
        }
    }
    for (key, rules) in sides {
        for rule in rules.iter().flatten() {
            let _ = writeln!(out, "\n[[network_policy.{key}]]");
            write_rule(out, rule);
        }
    }
}

fn write_rule(out: &mut String, rule: &Rule) {
    if let Some(peers) = &rule.peers {
        out.push_str("peers = [\n");
        for peer in peers {
            let _ = writeln!(out, "  {},", write_peer(peer));
        }
        out.push_str("]\n");
    }
    if let Some(ports) = &rule.ports {
        let ports: Vec<String> = ports.iter().map(port).collect();
        line(out, "ports", &format!("[{}]", ports.join(", ")));
    }
    if rule.mtls {
        line(out, "mtls", "\"required\"");
    }
}

fn write_peer(peer: &Peer) -> String {
    match peer {
        Peer::Select(selected) => inline(&[("select", Some(select(selected)))]),
        Peer::Entity(entity) => inline(&[("entity", Some(quoted(entity)))]),
        Peer::Cidr { cidr, except } => {
            let except = (!except.is_empty()).then(|| list(except));
            inline(&[("cidr", Some(quoted(cidr))), ("except", except)])
        }
    }
}

fn port(port: &Port) -> String {
    inline(&[
        ("port", port.port.map(|port| port.to_string())),
        ("end_port", port.end.map(|end| end.to_string())),
        ("protocol", port.protocol.map(quoted)),
    ])
}

fn select(select: &Select) -> String {
    let labels: Vec<(&str, Option<String>)> = select
        .labels
        .iter()
        .map(|(key, value)| (key.as_str(), Some(quoted(value))))
        .collect();
    let expressions: Vec<String> = select
        .expressions
        .iter()
        .map(|it| {
            let values = (!it.values.is_empty()).then(|| list(&it.values));
            inline(&[
                ("key", Some(quoted(&it.key))),
                ("operator", Some(quoted(it.operator))),
                ("values", values),
            ])
        })
        .collect();
    inline(&[
        ("labels", (!labels.is_empty()).then(|| inline(&labels))),
        (
            "expressions",
            (!expressions.is_empty()).then(|| format!("[{}]", expressions.join(", "))),
        ),
    ])
}

fn workload(out: &mut String, workload: &Workload) {
    out.push_str("[[workload]]\n");
    line(out, "name", &quoted(&workload.name));
    line(out, "namespace", &quoted(&workload.namespace));
    if let Some(account) = &workload.service_account {
        line(out, "service_account", &quoted(account));
    }
    comment(out, "To be filled in; a Certificate does not say it.");
    line(
        out,
        "netns",
        &quoted(&format!("/run/netns/{}", workload.name)),
    );
    line(out, "addresses", "[]");
    line(out, "identity", &quoted(&workload.identity));
    if !workload.dns_names.is_empty() {
        line(out, "dns_names", &list(&workload.dns_names));
    }
}

fn line(out: &mut String, key: &str, value: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{key} = {value}");
}

/// One line, whatever is in it: a manifest must not be able to end a comment.
fn comment(out: &mut String, text: &str) {
    out.push_str("# ");
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out.push('\n');
}

fn inline(fields: &[(&str, Option<String>)]) -> String {
    let there = fields
        .iter()
        .filter_map(|(key, value)| Some((key, value.as_ref()?)));
    let fields: Vec<String> = there
        .map(|(key, value)| {
            let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if !key.is_empty() && key.chars().all(is_bare) {
                format!("{key} = {value}")
            } else {
                format!("{} = {value}", quoted(key))
            }
        })
        .collect();
    if fields.is_empty() {
        return "{}".into();
    }
    format!("{{ {} }}", fields.join(", "))
}

fn list(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", quoted.join(", "))
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}
