//! cert-manager's Certificate: the workload it is for, and how the built-in CA would make the same.

use std::time::Duration;

use underseal_ktls::SpiffeId;

use super::{
    Notes,
    fields::{Fields, Wrong},
};
use crate::config::{
    pki::DnsName,
    value::{AbsolutePath, Label},
};

/// A `[[workload]]` as far as a Certificate tells.
pub(super) struct Workload {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) service_account: Option<String>,
    pub(super) identity: String,
    pub(super) dns_names: Vec<String>,
}

/// What `[pki]` has for all certificates.
#[derive(Default)]
pub(super) struct Authority {
    lifetime: Option<Duration>,
    renew_before: Option<Duration>,
    pub(super) key: Option<&'static str>,
}

impl Authority {
    pub(super) fn lifetime(&self) -> Option<String> {
        self.lifetime.map(text)
    }

    /// Nothing, where it would be longer than certificates live.
    pub(super) fn renew_before(&self) -> Option<String> {
        let lifetime = self.lifetime.unwrap_or(DAY);
        self.renew_before
            .filter(|before| *before < lifetime)
            .map(text)
    }

    fn set_key(&mut self, key: &'static str) -> bool {
        *self.key.get_or_insert(key) == key
    }
}

/// The workload of a `spec`; `None` if it is left out.
pub(super) fn workload(
    mut spec: Fields,
    (name, namespace): (&str, &str),
    authority: &mut Authority,
    notes: &mut Notes,
) -> Result<Option<Workload>, Wrong> {
    if spec.truth("isCA")? == Some(true) {
        notes.less(
            spec.at("isCA"),
            "a CA is no workload; the certificate is left out",
        );
        return Ok(None);
    }
    if let Some(wrong) = [name, namespace]
        .iter()
        .find(|name| name.parse::<Label>().is_err())
    {
        let why = format!(
            "{wrong:?} is no name for a workload (a-z, 0-9 and `-`); the certificate is left out"
        );
        notes.less("metadata", why);
        return Ok(None);
    }
    let service_account = account(&mut spec, namespace, notes)?;
    let dns_names = dns_names(&mut spec, notes)?;
    let identity = identity(&mut spec, (name, namespace), notes)?;
    times(&mut spec, authority, notes)?;
    key(&mut spec, authority, notes)?;
    usages(&mut spec, notes)?;
    if spec.take("issuerRef").is_some() {
        let why = "who issues is not said here: put the Secret's files into the folder `identity`, or use `underseal pki`";
        notes.detail(spec.at("issuerRef"), why);
    }
    for path in spec.rest() {
        notes.detail(path, "certificates of workloads have no such thing here");
    }
    Ok(Some(Workload {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        service_account: service_account.filter(|account| account != name),
        identity,
        dns_names,
    }))
}

/// The service account in the SPIFFE ID, which is all that an ID can say beside the namespace.
fn account(spec: &mut Fields, namespace: &str, notes: &mut Notes) -> Result<Option<String>, Wrong> {
    let uris = spec.texts("uris")?.unwrap_or_default();
    let [(path, uri)] = uris.as_slice() else {
        let why = "one URI, the SPIFFE ID, is wanted; the workload has the ID that its name makes";
        notes.less(spec.at("uris"), why);
        return Ok(None);
    };
    let id = uri.parse::<SpiffeId>().ok();
    let parts: Vec<&str> = id.iter().flat_map(|id| id.path().split('/')).collect();
    if let (Some(id), ["", "ns", of, "sa", account]) = (&id, parts.as_slice())
        && *of == namespace
        && account.parse::<Label>().is_ok()
    {
        let why = format!(
            "its trust domain belongs into [node]: trust_domain = {:?}",
            id.trust_domain()
        );
        notes.detail(path, why);
        return Ok(Some((*account).to_owned()));
    }
    let why = format!(
        "a workload's ID is spiffe://TRUST_DOMAIN/ns/{namespace}/sa/ACCOUNT; it has the one that its name makes"
    );
    notes.less(path, why);
    Ok(None)
}

fn dns_names(spec: &mut Fields, notes: &mut Notes) -> Result<Vec<String>, Wrong> {
    let mut names = Vec::new();
    for (path, name) in spec.texts("dnsNames")?.unwrap_or_default() {
        match name.parse::<DnsName>() {
            Ok(_) => names.push(name),
            Err(why) => notes.less(path, format!("{name:?}: {why}; it is left out")),
        }
    }
    Ok(names)
}

fn identity(
    spec: &mut Fields,
    (name, namespace): (&str, &str),
    notes: &mut Notes,
) -> Result<String, Wrong> {
    let secret = spec.text("secretName")?.unwrap_or_else(|| name.to_owned());
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let path = format!("{IDENTITIES}/{namespace}/{secret}");
    let is_name = secret.chars().all(is_plain) && !secret.starts_with('.');
    if is_name && path.parse::<AbsolutePath>().is_ok() {
        return Ok(path);
    }
    notes.less(
        spec.at("secretName"),
        "this is no name of a Secret; the folder is called as the workload",
    );
    Ok(format!("{IDENTITIES}/{namespace}/{name}"))
}

fn times(spec: &mut Fields, authority: &mut Authority, notes: &mut Notes) -> Result<(), Wrong> {
    let lifetime = span(spec, "duration", notes)?;
    let before = span(spec, "renewBefore", notes)?;
    for (key, new, old) in [
        ("duration", lifetime, &mut authority.lifetime),
        ("renewBefore", before, &mut authority.renew_before),
    ] {
        let Some(new) = new else { continue };
        if old.is_some_and(|old| old != new) {
            notes.detail(spec.at(key), "[pki] has one for all; the shortest is taken");
        }
        *old = Some(old.map_or(new, |old| old.min(new)));
    }
    Ok(())
}

/// A span as Go writes it, `2160h` or `1h30m0s`, in whole seconds.
fn span(spec: &mut Fields, key: &str, notes: &mut Notes) -> Result<Option<Duration>, Wrong> {
    let Some(text) = spec.text(key)? else {
        return Ok(None);
    };
    let span = parse(&text).filter(|span| (Duration::from_secs(1)..=LONGEST).contains(span));
    if span.is_none() {
        let why = format!("{text:?} is not from 1 second to 90 days; the default is taken");
        notes.detail(spec.at(key), why);
    }
    Ok(span)
}

fn parse(mut text: &str) -> Option<Duration> {
    let mut seconds: u64 = 0;
    while !text.is_empty() {
        let unit = text.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = text[..unit].parse().ok()?;
        let factor = match text[unit..].chars().next()? {
            'h' => 3600,
            'm' if !text[unit..].starts_with("ms") => 60,
            's' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(factor)?)?;
        text = &text[unit + 1..];
    }
    Some(Duration::from_secs(seconds))
}

fn text(span: Duration) -> String {
    let seconds = span.as_secs();
    for (unit, length) in [("d", 86_400), ("h", 3600), ("m", 60)] {
        if seconds.is_multiple_of(length) {
            return format!("{}{unit}", seconds / length);
        }
    }
    format!("{seconds}s")
}

fn key(spec: &mut Fields, authority: &mut Authority, notes: &mut Notes) -> Result<(), Wrong> {
    let Some(mut key) = spec.fields("privateKey")? else {
        return Ok(());
    };
    let at = key.at("algorithm");
    let algorithm = key.text("algorithm")?.unwrap_or_else(|| "RSA".into());
    let size = key.take("size").and_then(|size| size.as_u64());
    let kind = match (algorithm.as_str(), size) {
        ("ECDSA", None | Some(256)) => Some("p256"),
        ("Ed25519", _) => Some("ed25519"),
        _ => None,
    };
    match kind {
        Some(kind) if authority.set_key(kind) => {}
        Some(_) => notes.detail(at, "[pki] has one kind of key for all; the first is taken"),
        None => notes.detail(
            at,
            "the built-in CA makes keys of P-256 or Ed25519; files may have any",
        ),
    }
    for path in key.rest() {
        notes.detail(path, "keys are PKCS#8, and new with each certificate");
    }
    Ok(())
}

/// All certificates are for both ends of TLS, and for nothing else.
fn usages(spec: &mut Fields, notes: &mut Notes) -> Result<(), Wrong> {
    let at = spec.at("usages");
    let Some(usages) = spec.texts("usages")? else {
        return Ok(());
    };
    for needed in ["server auth", "client auth"] {
        if !usages.iter().any(|(_, usage)| usage == needed) {
            notes.detail(
                &at,
                format!("{needed:?} is not among them; here every certificate needs it"),
            );
        }
    }
    for (path, usage) in usages {
        let made = [
            "digital signature",
            "key encipherment",
            "server auth",
            "client auth",
        ];
        if !made.contains(&usage.as_str()) {
            notes.detail(
                path,
                format!("{usage:?} is nothing that a workload's certificate is for"),
            );
        }
    }
    Ok(())
}

/// Where identity folders are by default.
const IDENTITIES: &str = "/var/lib/underseal/identities";
/// The default of `lifetime`.
const DAY: Duration = Duration::from_secs(86_400);
/// The longest that `[pki]` takes.
const LONGEST: Duration = Duration::from_secs(90 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_as_go_writes_them() {
        for (go, ours) in [
            ("2160h", "90d"),
            ("2160h0m0s", "90d"),
            ("1h30m", "90m"),
            ("36h", "36h"),
            ("45s", "45s"),
        ] {
            assert_eq!(parse(go).map(text).as_deref(), Some(ours), "{go}");
        }
        for wrong in [
            "1",
            "h",
            "1.5h",
            "-1h",
            "100ms",
            "1d",
            "1é",
            "99999999999999999999h",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
