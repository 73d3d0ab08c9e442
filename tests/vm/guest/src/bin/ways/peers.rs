//! The two programs: the client names a case, both play it, the client prints what both have observed.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::exit;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cases::{self, Case, Family};
use crate::control::{Control, SOCKET};
use crate::end::{End, Role, Timing};
use crate::helper::Helper;
use crate::sys;

/// Of this family alone, and of both: then IPv4 arrives at IPv6 sockets.
const PORT: u16 = 7000;
const DUAL_PORT: u16 = 7001;
/// For what one case may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Serves until killed.
pub(crate) fn serve(v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
    let listen = |ip: IpAddr, port| TcpListener::bind((ip, port)).map(Arc::new);
    let listeners = [
        (Family::V4, listen(v4.into(), PORT)?),
        (Family::V6, listen(v6.into(), PORT)?),
        (
            Family::Mapped,
            listen(Ipv6Addr::UNSPECIFIED.into(), DUAL_PORT)?,
        ),
    ];
    let all = cases::all();
    // There may be one of an earlier server.
    let _ = fs::remove_file(SOCKET);
    let control = UnixListener::bind(SOCKET)?;
    loop {
        let mut idle = Control::new(control.accept()?.0, None)?;
        loop {
            let line = idle.line()?;
            if line.is_empty() {
                break;
            }
            idle = serve_one(&line, &all, &listeners, idle)?;
        }
    }
}

fn serve_one(
    line: &str,
    all: &[Case],
    listeners: &[(Family, Arc<TcpListener>)],
    control: Control,
) -> Result<Control> {
    let words: Vec<&str> = line.split(' ').collect();
    let [name, family, timing, held] = words[..] else {
        bail!("not a case: {line}")
    };
    let case = all
        .iter()
        .find(|case| case.name == name)
        .context("unknown case")?;
    let listener = listeners
        .iter()
        .find(|(f, _)| f.name() == family)
        .context("unknown family")?;
    let timing = cases::timing(timing).context("unknown timing")?;
    let mut end = End::new(Role::Server, timing, held == "held", control);
    end.listener = Some(Arc::clone(&listener.1));
    let result = watched(line, || {
        if timing != Timing::Late {
            end.open()?;
        }
        play_end(case, &mut end)
    });
    end.control.say(&said(result))?;
    end.control.hear("next")?;
    Ok(end.control)
}

/// What the client is to play, and how.
#[derive(Default)]
pub(crate) struct Choice {
    /// Process id of the helper that is to seal; none: nobody will.
    pub(crate) helper: Option<i32>,
    /// One case only.
    pub(crate) case: Option<String>,
    /// One family only.
    pub(crate) family: Option<String>,
}

/// Plays all cases that were chosen and prints a line for each.
pub(crate) fn play(v4: Ipv4Addr, v6: Ipv6Addr, choice: &Choice) -> Result<()> {
    let mut control = Control::new(UnixStream::connect(SOCKET)?, Some(PATIENCE))?;
    let chosen = |choice: &Option<String>, name: &str| choice.as_ref().is_none_or(|c| c == name);
    let mut failed = 0;
    for case in cases::all() {
        for family in case.families {
            if !chosen(&choice.case, case.name) || !chosen(&choice.family, family.name()) {
                continue;
            }
            let address: SocketAddr = match family {
                Family::V4 => (v4, PORT).into(),
                Family::V6 => (v6, PORT).into(),
                Family::Mapped => (v4.to_ipv6_mapped(), DUAL_PORT).into(),
            };
            for timing in case.timings {
                let mut end = End::new(Role::Client, *timing, choice.helper.is_some(), control);
                end.helper = choice.helper.map(Helper);
                end.address = Some(address);
                failed += u32::from(!play_one(&case, *family, &mut end)?);
                control = end.control;
            }
        }
    }
    if failed > 0 {
        bail!("{failed} cases failed");
    }
    println!("done");
    Ok(())
}

/// Plays one case; whether it came to its end.
fn play_one(case: &Case, family: Family, end: &mut End) -> Result<bool> {
    let held = if end.held { "held" } else { "free" };
    let head = format!("{} {} {:?}", case.name, family.name(), end.timing);
    end.control.say(&format!("{head} {held}"))?;
    let mine = said(watched(&head, || play_client(case, end)));
    let theirs = end.control.line()?;
    println!("{head}: {mine} | {theirs}");
    end.control.say("next")?;
    Ok(!mine.starts_with("FAILED") && !theirs.starts_with("FAILED"))
}

fn play_client(case: &Case, end: &mut End) -> Result<String> {
    if end.timing == Timing::Before {
        end.helper.map_or(Ok(()), Helper::stop)?;
    }
    let result = end.open().and_then(|()| play_end(case, end));
    // A case that failed half-way must not stop those that follow.
    end.helper.map_or(Ok(()), Helper::go)?;
    result
}

fn play_end(case: &Case, end: &mut End) -> Result<String> {
    sys::sigpipes();
    if end.timing == Timing::After {
        end.ready()?;
    }
    (case.run)(end)
}

fn said(result: Result<String>) -> String {
    result.unwrap_or_else(|error| format!("FAILED: {error:#}").replace('\n', " "))
}

/// Runs a case; one that does not end ends the program, which is how a lost wake-up shows.
fn watched(name: &str, work: impl FnOnce() -> Result<String>) -> Result<String> {
    let (done, ended) = mpsc::channel::<()>();
    let name = name.to_owned();
    let watch = thread::spawn(move || {
        if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            println!("{name}: FAILED: no end after {PATIENCE:?}");
            exit(3);
        }
    });
    let result = work();
    drop(done);
    let _ = watch.join();
    result
}
