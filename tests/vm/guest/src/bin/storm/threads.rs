//! Blocking sockets: two threads for each end, one asleep in send, one in recv.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::exchange::{Count, End, HEADER, Outcome, id_of};
use crate::{signals, wait_for};

/// How long a server that is told to end waits for connections that are ending.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(10);

pub(crate) fn serve(listener: &TcpListener, gate: Option<PathBuf>) -> Result<()> {
    let signals = signals()?;
    let (report, outcomes) = mpsc::channel();
    let accepted = Arc::new(AtomicU64::new(0));
    let talking = Arc::clone(&accepted);
    let listener = listener.try_clone()?;
    thread::spawn(move || {
        wait_for(gate.as_deref());
        for stream in listener.incoming() {
            talking.fetch_add(1, Ordering::SeqCst);
            let report = report.clone();
            thread::spawn(move || {
                let outcome =
                    stream.map_or_else(Outcome::from, |stream| talk(&stream, End::server()));
                // Nobody listens any more when the count has been printed.
                let _ = report.send(outcome);
            });
        }
    });
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE)?;
    // The clients are done, and what they did may still be on its way to a thread.
    let n = accepted.load(Ordering::SeqCst);
    println!("{}", counted(&outcomes, n, Instant::now() + LAST_WORDS));
    Ok(())
}

pub(crate) fn run((address, n, bytes): (SocketAddr, u64, u64), until: Instant) -> Result<()> {
    let (report, outcomes) = mpsc::channel();
    for number in 0..n {
        let report: Sender<Outcome> = report.clone();
        thread::spawn(move || {
            let stream = TcpStream::connect(address);
            let end = End::client(id_of(number), bytes);
            let outcome = stream.map_or_else(Outcome::from, |stream| talk(&stream, end));
            let _ = report.send(outcome);
        });
    }
    println!("{}", counted(&outcomes, n, until));
    Ok(())
}

fn counted(outcomes: &Receiver<Outcome>, n: u64, until: Instant) -> Count {
    let mut count = Count::default();
    for _ in 0..n {
        match outcomes.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(outcome) => count.add(&outcome),
            Err(_) => break,
        }
    }
    count.open = n - count.lived - count.reset - count.refused - count.wrong;
    count
}

/// Sends in a thread of its own and receives in this one.
fn talk(stream: &TcpStream, end: End) -> Outcome {
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let own = end.clone();
        let sender = scope.spawn(move || say(stream, own, &told));
        let heard = hear(stream, end, &tell);
        drop(tell);
        let said = sender.join().unwrap_or(Err(Outcome::Wrong("panic".into())));
        match (said, heard) {
            (_, wrong @ Outcome::Wrong(_)) => wrong,
            // The kernel tells a socket's error once: the other of two threads sees an end.
            (Err(Outcome::Reset), Outcome::Cut(_)) => Outcome::Reset,
            (_, cut @ Outcome::Cut(_)) => cut,
            (Err(failed), _) => failed,
            (Ok(()), heard) => heard,
        }
    })
}

/// Says everything; the server's end learns on `told` what the client has asked for.
fn say(mut stream: &TcpStream, mut end: End, told: &Receiver<End>) -> Result<(), Outcome> {
    loop {
        let next = end.next();
        stream.write_all(&next)?;
        end.sent += next.len() as u64;
        if end.has_said_all() {
            stream.shutdown(Shutdown::Write)?;
            return Ok(());
        }
        if next.is_empty() {
            let Ok(asked) = told.recv() else {
                return Err(Outcome::Reset);
            };
            let sent = end.sent;
            end = asked;
            end.sent = sent;
        }
    }
}

fn hear(mut stream: &TcpStream, mut end: End, tell: &Sender<End>) -> Outcome {
    let mut buffer = [0; 32 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return end.ended(),
            Ok(some) => {
                let before = end.received;
                if let Err(wrong) = end.hear(&buffer[..some]) {
                    // So that the other half of this end does not wait for ever.
                    let _ = stream.shutdown(Shutdown::Both);
                    return wrong;
                }
                if before < HEADER && end.received >= HEADER {
                    let _ = tell.send(end.clone());
                }
            }
            Err(error) => return error.into(),
        }
    }
}
