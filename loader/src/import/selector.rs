//! Label selectors: whose labels they are about, and what those are called here.

use super::{
    Notes,
    fields::{Fields, Wrong},
    policy::{Expression, NAMESPACE, NODE, SERVICE_ACCOUNT, Select},
};

/// What a selector is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// Cilium's endpoints: keys may say where a label comes from.
    Endpoints,
    /// Kubernetes' pods.
    Pods,
    /// Kubernetes' namespaces.
    Namespaces,
}

/// The selection; or, for each key that cannot be carried over, where it stands and why.
pub(super) type Selected = Result<Select, Vec<(String, String)>>;

/// Reads a selector.
pub(super) fn select(mut fields: Fields, about: About) -> Result<Selected, Wrong> {
    let (mut select, mut lost) = (Select::default(), Vec::new());
    for (path, key, value) in fields.pairs("matchLabels")? {
        match name(&key, about) {
            Ok(key) if is_valid(&key, &[&value]) => select.labels.push((key, value)),
            Ok(_) => lost.push((path, NO_LABEL.to_owned())),
            Err(why) => lost.push((path, why.to_owned())),
        }
    }
    for mut expression in fields.maps("matchExpressions")?.unwrap_or_default() {
        match read(&mut expression, about)? {
            Ok(read) => select.expressions.push(read),
            Err(fault) => lost.push(fault),
        }
        lost.extend(unknown(&expression));
    }
    lost.extend(unknown(&fields));
    if select.labels.len() != distinct(&select.labels) {
        // `any:app` and `k8s:app` are one label here.
        let why = "two of its keys are the same label here";
        lost.push((fields.at("matchLabels"), why.to_owned()));
    }
    Ok(if lost.is_empty() {
        Ok(select)
    } else {
        Err(lost)
    })
}

/// Reads the selector that says whom a policy restricts. `None` if that cannot be said here: the policy is refused.
pub(super) fn restricted(
    fields: Fields,
    about: About,
    notes: &mut Notes,
) -> Result<Option<Select>, Wrong> {
    match select(fields, about)? {
        Ok(selected) => Ok(Some(selected)),
        Err(lost) => {
            for (path, why) in lost {
                let why = format!("{why}; whom the policy restricts cannot be said");
                notes.refuse(path, why);
            }
            Ok(None)
        }
    }
}

/// Whether the configuration takes these: as Kubernetes does.
fn is_valid(key: &str, values: &[&str]) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_word = |text: &str| {
        let edges = text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric());
        text.len() <= 63 && text.chars().all(is_inner) && (edges || text.is_empty())
    };
    let is_prefix = |text: &str| {
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let label = |label: &str| !label.is_empty() && label.chars().all(letter);
        text.len() <= 253 && text.split('.').all(label)
    };
    let (prefix, name) = key
        .split_once('/')
        .map_or((None, key), |(p, name)| (Some(p), name));
    prefix.is_none_or(is_prefix)
        && !name.is_empty()
        && is_word(name)
        && values.iter().all(|value| is_word(value))
}

fn distinct(labels: &[(String, String)]) -> usize {
    let mut keys: Vec<&str> = labels.iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.len()
}

fn unknown(fields: &Fields) -> Vec<(String, String)> {
    let unknown = |path| (path, "this field is not known".to_owned());
    fields.rest().into_iter().map(unknown).collect()
}

fn read(fields: &mut Fields, about: About) -> Result<Result<Expression, (String, String)>, Wrong> {
    let key = fields.text("key")?.unwrap_or_default();
    let operator = fields.text("operator")?.unwrap_or_default();
    let values = fields.texts("values")?.unwrap_or_default();
    let values: Vec<String> = values.into_iter().map(|(_, value)| value).collect();
    let (operator, needs_values) = match operator.as_str() {
        "In" => ("In", true),
        "NotIn" => ("NotIn", true),
        "Exists" => ("Exists", false),
        "DoesNotExist" => ("DoesNotExist", false),
        other => {
            let why = format!("{other:?} is none of In, NotIn, Exists, DoesNotExist");
            return Ok(Err((fields.at("operator"), why)));
        }
    };
    if values.is_empty() == needs_values {
        let why = format!(
            "with {operator} there are {}",
            if needs_values { "values" } else { "none" }
        );
        return Ok(Err((fields.at("values"), why)));
    }
    let texts: Vec<&str> = values.iter().map(String::as_str).collect();
    Ok(match name(&key, about) {
        Ok(key) if !is_valid(&key, &texts) => Err((fields.path().to_owned(), NO_LABEL.to_owned())),
        Ok(key) => Ok(Expression {
            key,
            operator,
            values,
        }),
        Err(why) => Err((fields.at("key"), why.to_owned())),
    })
}

/// What a label is called here.
fn name(key: &str, about: About) -> Result<String, &'static str> {
    if about == About::Namespaces {
        return match key {
            "kubernetes.io/metadata.name" => Ok(NAMESPACE.into()),
            _ => Err("of a namespace only the name is known here, not its labels"),
        };
    }
    let bare = match key.split_once(':') {
        Some(("k8s" | "any", bare)) if about == About::Endpoints => bare,
        Some(("reserved", _)) => return Err("a reserved identity among labels has no counterpart"),
        Some(_) => return Err("a label of this source has no counterpart"),
        None => key,
    };
    match bare {
        "" => Err("the key is empty"),
        "io.kubernetes.pod.nodeName" | "kubernetes.io/hostname" => Ok(NODE.into()),
        _ if bare.starts_with("underseal/") => Err("this label would be taken for one of ours"),
        _ if about == About::Pods => Ok(bare.into()),
        "io.kubernetes.pod.namespace"
        | "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name" => Ok(NAMESPACE.into()),
        "io.cilium.k8s.policy.serviceaccount" => Ok(SERVICE_ACCOUNT.into()),
        "io.cilium.k8s.policy.cluster" => Err("clusters have no counterpart"),
        _ if bare.starts_with("io.cilium.k8s.namespace.labels") => {
            Err("of a namespace only the name is known here, not its labels")
        }
        _ => Ok(bare.into()),
    }
}

/// Says that the peer which `lost` stood in is left out.
pub(super) fn without_peer(lost: Vec<(String, String)>, notes: &mut Notes) {
    for (path, why) in lost {
        notes.less(path, format!("{why}; this peer is left out"));
    }
}

const NO_LABEL: &str = "this is no label that Kubernetes would take";
