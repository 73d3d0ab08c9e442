//! What client and server tell each other beside the connection that is tried.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Result, ensure};

/// Where the server waits. Both ends see the same files, whatever their network namespaces.
pub(crate) const SOCKET: &str = "/tmp/ways.sock";

/// Words to and from the other end.
pub(crate) struct Control(BufReader<UnixStream>);

impl Control {
    pub(crate) fn new(stream: UnixStream, patience: Option<Duration>) -> Result<Self> {
        stream.set_read_timeout(patience)?;
        Ok(Self(BufReader::new(stream)))
    }

    pub(crate) fn say(&mut self, line: &str) -> Result<()> {
        Ok(self.0.get_mut().write_all(format!("{line}\n").as_bytes())?)
    }

    /// The next line; empty at the end.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Waits for this word.
    pub(crate) fn hear(&mut self, word: &str) -> Result<()> {
        let said = self.line()?;
        ensure!(
            said == word,
            "the other end said {said:?} instead of {word:?}"
        );
        Ok(())
    }
}
