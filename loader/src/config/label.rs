//! Labels of workloads, and expressions that select by them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{
    check::Checker,
    choice::choice,
    value::{Invalid, by_text},
};

by_text! { Operator }

/// What every workload has beside its own labels, by these keys.
pub const NAME: &str = "underseal/name";
/// The namespace of its name.
pub const NAMESPACE: &str = "underseal/namespace";
/// Its service account.
pub const SERVICE_ACCOUNT: &str = "underseal/service-account";
/// The node that it is on.
pub const NODE: &str = "underseal/node";

/// Labels, by key. Both keys and values are as Kubernetes has them.
pub type Labels = BTreeMap<String, String>;

/// Selects workloads by their labels: all that is listed must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// In the file's order, equalities first.
    pub requirements: Vec<Requirement>,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// What must be true of it.
    pub operator: Operator,
    /// For `In` and `NotIn`; otherwise empty.
    pub values: Vec<String>,
}

choice! {
    /// What a condition says.
    Operator, "an operator":
    /// The label is there and has one of the values.
    #[default]
    In = "In",
    /// The label has none of the values, or is not there.
    NotIn = "NotIn",
    /// The label is there.
    Exists = "Exists",
    /// The label is not there.
    DoesNotExist = "DoesNotExist",
}

impl Selector {
    /// Whether labels fit.
    #[must_use]
    pub fn fits(&self, labels: &Labels) -> bool {
        self.requirements.iter().all(|it| it.fits(labels))
    }

    /// Whether a condition is about this label.
    #[must_use]
    pub fn names(&self, key: &str) -> bool {
        self.requirements.iter().any(|it| it.key == key)
    }
}

impl Requirement {
    fn fits(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        let listed = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => listed,
            Operator::NotIn => !listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("everything");
        }
        for (i, it) in self.requirements.iter().enumerate() {
            let Requirement {
                key,
                operator,
                values,
            } = it;
            f.write_str(if i == 0 { "" } else { ", " })?;
            match (operator, &values[..]) {
                (Operator::In, [one]) => write!(f, "{key}={one}")?,
                (Operator::Exists, _) => write!(f, "{key}")?,
                (Operator::DoesNotExist, _) => write!(f, "!{key}")?,
                _ => write!(f, "{key} {operator} ({})", values.join(", "))?,
            }
        }
        Ok(())
    }
}

/// A selector as the file has it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    expressions: Vec<RawExpression>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExpression {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

/// A key: `[prefix/]name`.
struct Key;

impl FromStr for Key {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (prefix, name) = match text.split_once('/') {
            Some((prefix, name)) => (Some(prefix), name),
            None => (None, text),
        };
        let is_domain = |text: &str| {
            let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            text.len() <= 253
                && text
                    .split('.')
                    .all(|label| !label.is_empty() && label.bytes().all(word))
        };
        if prefix.is_some_and(|prefix| !is_domain(prefix)) || name.is_empty() || !is_word(name) {
            return Err(Invalid(format!(
                "`{text}` is no label: a key is a name of letters, digits, `-`, `_` and `.`, at most 63, and \
                 maybe a DNS name and `/` before it"
            )));
        }
        Ok(Self)
    }
}

/// Whether this is a name in a key, or a value, as Kubernetes has them.
fn is_word(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(text.bytes().next())
        && edge(text.bytes().next_back())
}

impl Checker {
    /// The labels that a workload has by itself, which none of its own may replace.
    pub(super) fn labels(&mut self, at: &str, raw: &Labels, own: [(&str, &str); 4]) -> Labels {
        for (key, value) in raw {
            self.label_key(at, key);
            self.label_value(at, value);
            if key.starts_with("underseal/") {
                self.fault(
                    at,
                    format!("`{key}`: keys of `underseal/` are not given by the file"),
                );
            }
        }
        let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
        raw.clone().into_iter().chain(own).collect()
    }

    pub(super) fn selector(&mut self, at: &str, raw: &Raw) -> Selector {
        let mut requirements = Vec::new();
        for (key, value) in &raw.labels {
            self.label_key(&format!("{at}.labels"), key);
            self.label_value(&format!("{at}.labels"), value);
            requirements.push(Requirement {
                key: key.clone(),
                operator: Operator::In,
                values: vec![value.clone()],
            });
        }
        for (i, raw) in raw.expressions.iter().enumerate() {
            let at = format!("{at}.expressions.{i}");
            self.label_key(&format!("{at}.key"), &raw.key);
            for value in &raw.values {
                self.label_value(&format!("{at}.values"), value);
            }
            let Some(operator) = self.value::<Operator>(format!("{at}.operator"), &raw.operator)
            else {
                continue;
            };
            let takes_values = matches!(operator, Operator::In | Operator::NotIn);
            if takes_values == raw.values.is_empty() {
                let why = if takes_values { "needs" } else { "takes no" };
                self.fault(at, format!("`{operator}` {why} `values`"));
            }
            requirements.push(Requirement {
                key: raw.key.clone(),
                operator,
                values: raw.values.clone(),
            });
        }
        Selector { requirements }
    }

    fn label_key(&mut self, at: &str, key: &str) {
        let _: Option<Key> = self.value(at, key);
    }

    fn label_value(&mut self, at: &str, value: &str) {
        if !is_word(value) {
            let why = "is no value of a label: letters, digits, `-`, `_` and `.`, at most 63";
            self.fault(at, format!("`{value}` {why}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        let labels: Labels = [("app", "web"), ("tier", "front")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into();
        let fits = |key: &str, operator, values: &[&str]| {
            let it = Requirement {
                key: key.to_owned(),
                operator,
                values: values.iter().map(|&v| v.to_owned()).collect(),
            };
            it.fits(&labels)
        };
        assert!(fits("app", Operator::In, &["db", "web"]));
        assert!(!fits("app", Operator::In, &["db"]));
        assert!(!fits("zone", Operator::In, &["a"]));
        assert!(fits("app", Operator::NotIn, &["db"]));
        assert!(!fits("app", Operator::NotIn, &["web"]));
        // What is not there is in no list.
        assert!(fits("zone", Operator::NotIn, &["a"]));
        assert!(fits("app", Operator::Exists, &[]) && !fits("zone", Operator::Exists, &[]));
        assert!(
            !fits("app", Operator::DoesNotExist, &[]) && fits("zone", Operator::DoesNotExist, &[])
        );
        assert!(Selector::default().fits(&labels));
    }

    #[test]
    fn keys_and_values() {
        for key in ["app", "app.kubernetes.io/name", "A_b.c-d", "x/y"] {
            assert!(Key::from_str(key).is_ok(), "{key}");
        }
        for key in ["", "/x", "x/", "a b", "-a", "Up/x", "a/b/c"] {
            assert!(Key::from_str(key).is_err(), "{key}");
        }
        assert!(is_word("") && is_word("v1.2") && !is_word("a/b") && !is_word("a-"));
    }
}
