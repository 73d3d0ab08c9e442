//! What is wrong with a configuration, shown where it stands.

use std::{fmt, ops::Range};

use super::source::Source;

/// One mistake: where it stands and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Name of the file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// The line's text.
    text: String,
    /// Characters to underline, at least 1.
    width: usize,
}

impl Diagnostic {
    /// A mistake at the byte range `span` of `source`. Only its first line is shown.
    pub(super) fn at(source: &Source, span: Range<usize>, message: String) -> Self {
        let text = &source.text;
        let start = floor(text, span.start);
        let end = floor(text, span.end).max(start);
        let from = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let to = text[start..].find('\n').map_or(text.len(), |at| start + at);
        Self {
            file: source.name.clone(),
            line: text[..from].matches('\n').count() + 1,
            column: text[from..start].chars().count() + 1,
            message,
            text: text[from..to].trim_end().to_owned(),
            width: text[start..end.min(to)].trim_end().chars().count().max(1),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        // Tabs stay, so that the caret stands below its token at any tab width.
        let indent: String = self
            .text
            .chars()
            .take(self.column - 1)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        writeln!(
            f,
            "{}:{}:{}: {}",
            self.file, self.line, self.column, self.message
        )?;
        writeln!(f, "  {number} | {}", self.text)?;
        write!(f, "  {margin} | {indent}{}", "^".repeat(self.width))
    }
}

/// The last character border of `text` at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at)
}
