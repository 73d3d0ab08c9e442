//! Runs one case: forks its two halves into their network namespaces, and gives each what it needs.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, setpgid};

use crate::cases::{Case, Half, Kind};
use crate::{sys, wait};

/// Longer than any case takes, under emulation and load.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is to come of a case that cannot work on a sealed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Nothing seals: what plain TCP does.
    Plain,
    /// A reset.
    Sealed,
}

impl Expect {
    pub(crate) fn parse(word: &str) -> Result<Self> {
        match word {
            "plain" => Ok(Self::Plain),
            "sealed" => Ok(Self::Sealed),
            _ => bail!("expect {word}?"),
        }
    }
}

/// What all cases share.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) expect: Expect,
    pub(crate) helper: i32,
    /// Of clients, of servers.
    pub(crate) netns: [String; 2],
    /// Likewise, IPv4 and IPv6.
    pub(crate) addresses: [[IpAddr; 2]; 2],
}

/// One half of a case at work.
#[derive(Debug)]
pub(crate) struct Side {
    /// Where the server listens.
    pub(crate) address: SocketAddr,
    pub(crate) expect: Expect,
    pub(crate) helper: Helper,
    other: BufReader<UnixStream>,
}

impl Lab {
    pub(crate) fn run(&self, case: &Case, family: usize, port: u16) -> Result<()> {
        let (client_end, server_end) = UnixStream::pair()?;
        let place = usize::from(case.kind != Kind::Inside);
        let helper = Helper((self.helper != 0).then(|| Pid::from_raw(self.helper)));
        let ip = match case.kind {
            Kind::Inside if case.name.starts_with("loopback") => {
                ["127.0.0.1", "::1"][family].parse()?
            }
            _ => self.addresses[place][family],
        };
        let begin = |netns: &str, end: UnixStream, others: &[RawFd], half: Half| {
            sys::spawn(|| {
                // Or this half would never hear that the other one has ended.
                others.iter().try_for_each(|fd| sys::close_number(*fd))?;
                setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
                let path = format!("/run/netns/{netns}");
                setns(File::open(&path).context(path)?, CloneFlags::CLONE_NEWNET)?;
                end.set_read_timeout(Some(PATIENCE))?;
                let address = SocketAddr::new(ip, port);
                half(&mut Side {
                    address,
                    expect: self.expect,
                    helper,
                    other: BufReader::new(end),
                })
            })
        };
        // Each end is dropped here once its half has it: a half that ends is heard of by the other one.
        let others = [client_end.as_raw_fd()];
        let server = begin(&self.netns[place], server_end, &others, case.server)?;
        let client = begin(&self.netns[0], client_end, &[], case.client)?;
        let mut halves = vec![("server", server), ("client", client)];
        let result = ended(&mut halves);
        for group in [server, client] {
            // They, and what they have started, may have ended.
            let _ = killpg(group, Signal::SIGKILL);
        }
        for (_, pid) in halves {
            waitpid(pid, None)?;
        }
        helper.resume()?;
        result
    }
}

/// Waits for both halves; takes out those that have ended.
fn ended(halves: &mut Vec<(&str, Pid)>) -> Result<()> {
    let mut failed = Vec::new();
    let waited = wait::until("both halves to end", PATIENCE, || {
        let mut at = 0;
        while let Some(&(name, pid)) = halves.get(at) {
            match waitpid(pid, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::StillAlive => at += 1,
                status => {
                    halves.remove(at);
                    if status != WaitStatus::Exited(pid, 0) {
                        failed.push(format!("{name}: {status:?}"));
                    }
                }
            }
        }
        Ok(halves.is_empty())
    });
    ensure!(failed.is_empty(), "{}", failed.join(", "));
    waited
}

impl Side {
    /// Listens, and says so.
    pub(crate) fn listen(&mut self) -> Result<TcpListener> {
        let listener = TcpListener::bind(self.address)?;
        self.tell("listening")?;
        Ok(listener)
    }

    /// Connects once the other half listens.
    pub(crate) fn connect(&mut self) -> Result<TcpStream> {
        self.hear("listening")?;
        TcpStream::connect(self.address).context("connect")
    }

    /// Listens, and accepts once the other half says so.
    pub(crate) fn accept_when_told(&mut self) -> Result<TcpStream> {
        let listener = self.listen()?;
        self.hear("accept")?;
        Ok(listener.accept()?.0)
    }

    /// Tells the other half how far this one is.
    pub(crate) fn tell(&mut self, word: &str) -> Result<()> {
        writeln!(self.other.get_mut(), "{word}").context("the other half has ended")
    }

    /// Waits until the other half says `word`.
    pub(crate) fn hear(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        let read = self.other.read_line(&mut line);
        read.with_context(|| format!("waiting for {word:?}"))?;
        ensure!(line.trim_end() == word, "heard {line:?}, not {word:?}");
        Ok(())
    }

    /// Whether a sealed connection cannot work like this, and is to be reset.
    pub(crate) fn is_sealed(&self) -> bool {
        self.expect == Expect::Sealed
    }
}

/// The handshake helper, if one runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Helper(Option<Pid>);

impl Helper {
    /// Stops it: what happens now, it finds when it is resumed, as if it had been slow.
    pub(crate) fn stop(self) -> Result<()> {
        let Some(pid) = self.0 else { return Ok(()) };
        kill(pid, Signal::SIGSTOP)?;
        wait::until("the helper to stop", PATIENCE, || wait::is_in(pid, "T"))
    }

    /// Lets it go on; nothing if it runs.
    pub(crate) fn resume(self) -> Result<()> {
        match self.0 {
            Some(pid) => Ok(kill(pid, Signal::SIGCONT)?),
            None => Ok(()),
        }
    }
}
