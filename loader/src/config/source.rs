//! The text of a configuration in one of three formats: its values for figment, and the place in
//! the text of every value, which figment does not keep.

use std::{ops::Range, path::Path};

use figment::{
    Metadata, Profile, Provider,
    value::{Dict, Map},
};
use granit_parser::{Event, Parser, Span};
use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostic;

/// A format that a configuration may be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// TOML 1.
    Toml,
    /// YAML 1.2, one document.
    Yaml,
    /// JSON.
    Json,
}

impl Format {
    /// The format that the ending of `path` tells; TOML for any ending but `.yaml`, `.yml`, `.json`.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        match path.extension().and_then(|e| e.to_str()) {
            Some("yaml" | "yml") => Self::Yaml,
            Some("json") => Self::Json,
            _ => Self::Toml,
        }
    }
}

/// A configuration as text.
#[derive(Clone, Debug)]
pub struct Source {
    /// Name of the file, for messages.
    pub name: String,
    /// Its content.
    pub text: String,
    /// How it is written.
    pub format: Format,
}

/// Why the text could not be read as its format: byte range and reason.
pub(super) struct SyntaxError {
    pub(super) span: Range<usize>,
    pub(super) message: String,
}

impl Source {
    /// The values of the text.
    pub(super) fn values(&self) -> Result<Values, SyntaxError> {
        match self.format {
            Format::Toml => toml::from_str(&self.text).map_err(|e| SyntaxError {
                span: e.span().unwrap_or_default(),
                message: e.message().to_owned(),
            }),
            Format::Yaml => {
                // Snippets off: `Diagnostic` shows the line in the same way for all formats.
                let options = serde_saphyr::options! { with_snippet: false };
                serde_saphyr::from_str_with_options(&self.text, options).map_err(|e| SyntaxError {
                    span: e
                        .location()
                        .map_or(0..0, |l| self.offset(l.line(), l.column())),
                    message: without_place(e.to_string()),
                })
            }
            Format::Json => serde_json::from_str(&self.text).map_err(|e| SyntaxError {
                span: self.offset(e.line() as u64, e.column() as u64),
                message: without_place(e.to_string()),
            }),
        }
        .map(Values)
    }

    /// What is wrong at a line and a column, both from 1, shown there.
    pub(crate) fn complaint(&self, (line, column): (u64, u64), message: String) -> String {
        let span = self.offset(line, column);
        Diagnostic::at(self, span, without_place(message)).to_string()
    }

    /// The place of every value, or of none if the text cannot be parsed.
    pub(super) fn places(&self) -> Tree {
        let tree = match self.format {
            Format::Toml => DeTable::parse(&self.text).ok().map(|table| {
                let span = table.span();
                from_toml(&DeValue::Table(table.into_inner()), span)
            }),
            Format::Yaml | Format::Json => from_yaml(&self.text),
        };
        tree.unwrap_or_default()
    }

    /// The empty byte range at a line and a column (in characters), both from 1.
    fn offset(&self, line: u64, column: u64) -> Range<usize> {
        let lines = usize::try_from(line).unwrap_or(usize::MAX);
        let columns = usize::try_from(column).unwrap_or(usize::MAX);
        let start: usize = self
            .text
            .split_inclusive('\n')
            .take(lines.saturating_sub(1))
            .map(str::len)
            .sum();
        let within = self.text[start..]
            .char_indices()
            .nth(columns.saturating_sub(1))
            .map_or(self.text.len() - start, |(at, _)| at);
        start + within..start + within
    }
}

/// The message without " at line 1 column 23": the place is told apart from it.
fn without_place(message: String) -> String {
    match message.rsplit_once(" at line ") {
        Some((before, _)) => before.to_owned(),
        None => message,
    }
}

/// Values as figment takes them.
pub(super) struct Values(Dict);

impl Provider for Values {
    fn metadata(&self) -> Metadata {
        Metadata::named("configuration")
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.0.clone())]))
    }
}

/// Where a value and what is in it stand in the text, in bytes.
#[derive(Default)]
pub(super) struct Tree {
    span: Range<usize>,
    children: Vec<Child>,
}

struct Child {
    /// Key in a table, index in a list.
    key: String,
    /// Place of the key; of the value in a list.
    span: Range<usize>,
    value: Tree,
}

impl Tree {
    /// The place of the value at `path`, or of the innermost value around it that exists.
    pub(super) fn value<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> Range<usize> {
        self.walk(path).map_or(0..0, |(_, tree)| tree.span.clone())
    }

    /// The place of the key at `path`; see [`Self::value`].
    pub(super) fn key<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> Range<usize> {
        self.walk(path).map_or(0..0, |(key, _)| key)
    }

    fn walk<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> Option<(Range<usize>, &Self)> {
        let mut found = None;
        let mut tree = self;
        for step in path {
            let Some(child) = tree.children.iter().find(|c| c.key == step) else {
                break;
            };
            tree = &child.value;
            found = Some((child.span.clone(), tree));
        }
        found
    }
}

fn from_toml(value: &DeValue<'_>, span: Range<usize>) -> Tree {
    let children = match value {
        DeValue::Table(table) => table
            .iter()
            .map(|(key, value)| Child {
                key: key.get_ref().to_string(),
                span: key.span(),
                value: from_toml(value.get_ref(), value.span()),
            })
            .collect(),
        DeValue::Array(array) => array
            .iter()
            .enumerate()
            .map(|(index, value)| Child {
                key: index.to_string(),
                span: value.span(),
                value: from_toml(value.get_ref(), value.span()),
            })
            .collect(),
        _ => Vec::new(),
    };
    Tree { span, children }
}

/// Also for JSON, which is a subset of YAML.
fn from_yaml(text: &str) -> Option<Tree> {
    let events = Parser::new_from_str(text)
        .collect::<Result<Vec<_>, _>>()
        .ok()?;
    let mut events = events
        .iter()
        .filter(|(event, _)| event.is_node() || ends(event));
    let (event, span) = events.next()?;
    yaml_node(event, *span, &mut events)
}

/// The tree of a node whose first event is `event`; takes the node's other events from `rest`.
fn yaml_node<'a>(
    event: &Event<'_>,
    span: Span,
    rest: &mut dyn Iterator<Item = &'a (Event<'a>, Span)>,
) -> Option<Tree> {
    let mut tree = Tree {
        span: span.byte_range()?,
        children: Vec::new(),
    };
    let table = matches!(event, Event::MappingStart(..));
    if !table && !matches!(event, Event::SequenceStart(..)) {
        return Some(tree);
    }
    loop {
        let (event, span) = rest.next()?;
        if ends(event) {
            return Some(tree);
        }
        let child = if table {
            let key = yaml_node(event, *span, rest)?;
            let name = event.scalar().map(|(text, _)| text.to_owned());
            let (event, span) = rest.next()?;
            Child {
                key: name.unwrap_or_default(),
                span: key.span,
                value: yaml_node(event, *span, rest)?,
            }
        } else {
            let value = yaml_node(event, *span, rest)?;
            Child {
                key: tree.children.len().to_string(),
                span: value.span.clone(),
                value,
            }
        };
        tree.children.push(child);
    }
}

const fn ends(event: &Event<'_>) -> bool {
    matches!(event, Event::MappingEnd | Event::SequenceEnd)
}
