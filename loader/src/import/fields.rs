//! A map of a manifest whose fields are taken out one by one: what nobody has taken is what this version does not know.

use serde_json::{Map, Value};

/// A field has another type than Kubernetes would accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong(pub(super) String);

/// A map, and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    pub(super) fn of(path: impl Into<String>, value: Value) -> Result<Self, Wrong> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            other => Err(wrong(&path, "a map", &other)),
        }
    }

    /// An empty one.
    pub(super) fn none(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            map: Map::new(),
        }
    }

    /// Where it stands.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Where its field `key` stands.
    pub(super) fn at(&self, key: &str) -> String {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !key.is_empty() && key.chars().all(is_plain) {
            let dot = if self.path.is_empty() { "" } else { "." };
            format!("{}{dot}{key}", self.path)
        } else {
            format!("{}[{key:?}]", self.path)
        }
    }

    /// Takes a field; one that is null is not there.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    /// Whether it has this field.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, Wrong> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(&self.at(key), "a text", &other)),
        }
    }

    pub(super) fn truth(&mut self, key: &str) -> Result<Option<bool>, Wrong> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(truth)),
            Some(other) => Err(wrong(&self.at(key), "true or false", &other)),
        }
    }

    pub(super) fn port(&mut self, key: &str) -> Result<Option<u16>, Wrong> {
        match self.take(key) {
            None => Ok(None),
            Some(other) => {
                let port = other.as_u64().and_then(|port| u16::try_from(port).ok());
                port.map(Some)
                    .ok_or_else(|| wrong(&self.at(key), "a port", &other))
            }
        }
    }

    pub(super) fn fields(&mut self, key: &str) -> Result<Option<Self>, Wrong> {
        let value = self.take(key);
        value.map(|value| Self::of(self.at(key), value)).transpose()
    }

    /// The elements of a list, each with where it stands.
    pub(super) fn list(&mut self, key: &str) -> Result<Option<Vec<(String, Value)>>, Wrong> {
        let path = self.at(key);
        match self.take(key) {
            None => Ok(None),
            Some(Value::Array(list)) => {
                let at = |(i, value)| (format!("{path}[{i}]"), value);
                Ok(Some(list.into_iter().enumerate().map(at).collect()))
            }
            Some(other) => Err(wrong(&path, "a list", &other)),
        }
    }

    /// The elements of a list of maps.
    pub(super) fn maps(&mut self, key: &str) -> Result<Option<Vec<Self>>, Wrong> {
        let list = self.list(key)?;
        let maps = |list: Vec<(String, Value)>| {
            let map = |(path, value)| Self::of(path, value);
            list.into_iter().map(map).collect()
        };
        list.map(maps).transpose()
    }

    /// The elements of a list of texts, each with where it stands.
    pub(super) fn texts(&mut self, key: &str) -> Result<Option<Vec<(String, String)>>, Wrong> {
        let list = self.list(key)?;
        let texts = |list: Vec<(String, Value)>| {
            let text = |(path, value): (String, Value)| match value {
                Value::String(text) => Ok((path, text)),
                other => Err(wrong(&path, "a text", &other)),
            };
            list.into_iter().map(text).collect()
        };
        list.map(texts).transpose()
    }

    /// A map of texts.
    pub(super) fn pairs(&mut self, key: &str) -> Result<Vec<(String, String, String)>, Wrong> {
        let Some(fields) = self.fields(key)? else {
            return Ok(Vec::new());
        };
        let pair = |(name, value): (&String, &Value)| match value {
            Value::String(text) => Ok((fields.at(name), name.clone(), text.clone())),
            other => Err(wrong(&fields.at(name), "a text", other)),
        };
        fields.map.iter().map(pair).collect()
    }

    /// Where everything stands that nobody has taken.
    pub(super) fn rest(&self) -> Vec<String> {
        let there = self.map.iter().filter(|(_, value)| !value.is_null());
        there.map(|(key, _)| self.at(key)).collect()
    }
}

fn wrong(path: &str, wanted: &str, found: &Value) -> Wrong {
    let found = match found {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    };
    Wrong(format!("{path}: {wanted} is wanted here, not {found}"))
}
