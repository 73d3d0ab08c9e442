//! Signals, stops and debuggers that come to a thread while it sleeps in a call on a held socket.

use std::io::{self, ErrorKind, Read as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, gettid};

use crate::data::{self, AMOUNT, LISTENER, SPEAKER, Turn, talk};
use crate::lab::Side;
use crate::passing::ensure_reset;
use crate::sys::{self, OnSignal};
use crate::wait;

/// How often the handler has run.
pub(crate) static HANDLED: AtomicU32 = AtomicU32::new(0);

/// Sends a signal to the calling thread once it sleeps in one of `calls`, while `work` runs; waits for the handler,
/// and until it sleeps there again; then `goes_on`. The handler must run once and no more.
fn interrupted<T>(
    side: &mut Side,
    calls: &[i64],
    then: OnSignal,
    goes_on: impl FnOnce(&mut Side) -> Result<()> + Send,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    HANDLED.store(0, Ordering::SeqCst);
    sys::handle(libc::SIGUSR1, then)?;
    let sleeper = gettid();
    let result = thread::scope(|scope| {
        let poker = scope.spawn(|| {
            wait::until_in_call(sleeper, calls)?;
            sys::signal_thread(sleeper, libc::SIGUSR1)?;
            wait::until("the handler", wait::PATIENCE, || {
                Ok(HANDLED.load(Ordering::SeqCst) == 1)
            })?;
            wait::until_in_call(sleeper, calls)?;
            goes_on(side)
        });
        let result = work();
        poker.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        result
    })?;
    let handled = HANDLED.load(Ordering::SeqCst);
    ensure!(handled == 1, "the handler ran {handled} times");
    Ok(result)
}

/// Does `call` again while it is interrupted, and fails unless that happened as often as it must.
fn retried<T>(then: OnSignal, mut call: impl FnMut() -> io::Result<T>) -> Result<T> {
    let mut interruptions = 0;
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => interruptions += 1,
            result => {
                let expected = u32::from(then == OnSignal::Return);
                ensure!(
                    interruptions == expected,
                    "{interruptions} interruptions instead of {expected}"
                );
                return Ok(result?);
            }
        }
    }
}

const RECEIVE: &[i64] = &[libc::SYS_recvfrom, libc::SYS_read];
const SEND: &[i64] = &[libc::SYS_sendto, libc::SYS_write];
const ACCEPT: &[i64] = &[libc::SYS_accept, libc::SYS_accept4];
const WAIT: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_epoll_pwait];
const CONNECT: &[i64] = &[libc::SYS_connect];

/// In recv, with and without SA_RESTART.
pub(crate) fn receiving(side: &mut Side) -> Result<()> {
    each(side, |side, then| {
        let socket = TcpStream::connect(side.address)?;
        let mut first = [0];
        interrupted(
            side,
            RECEIVE,
            then,
            |side| side.tell("accept"),
            || retried(then, || sys::receive(socket.as_fd(), &mut first)),
        )?;
        ensure!(first == *b"x", "{first:?}");
        talk(&socket, Turn::Speak)
    })
}

/// In send.
pub(crate) fn sending(side: &mut Side) -> Result<()> {
    each(side, |side, then| {
        let socket = TcpStream::connect(side.address)?;
        // More than the socket takes at once, plain; held, it takes nothing.
        let all = data::stream(SPEAKER, AMOUNT * 100);
        let mut sent = 0;
        let tell = |side: &mut Side| side.tell("accept");
        interrupted(side, SEND, then, tell, || {
            while sent < all.len() {
                match sys::send(socket.as_fd(), &all[sent..]) {
                    Ok(some) => sent += some,
                    Err(error)
                        if error.kind() == ErrorKind::Interrupted && then == OnSignal::Return => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        })?;
        data::hear(&socket, LISTENER)
    })
}

/// In epoll_wait, which never restarts.
pub(crate) fn waiting(side: &mut Side) -> Result<()> {
    each(side, |side, then| {
        let socket = TcpStream::connect(side.address)?;
        let epoll = Epoll::new(EpollCreateFlags::empty())?;
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let mut events = [EpollEvent::empty()];
        let accept = |side: &mut Side| side.tell("accept");
        interrupted(side, WAIT, then, accept, || {
            retried(OnSignal::Return, || {
                Ok(epoll.wait(&mut events, EpollTimeout::NONE)?)
            })
        })?;
        (&socket).read_exact(&mut [0])?;
        talk(&socket, Turn::Speak)
    })
}

/// The server of these: for either kind of handler it accepts when told, says one byte, and talks.
pub(crate) fn greets(side: &mut Side) -> Result<()> {
    let listener = side.listen()?;
    for _ in KINDS {
        side.hear("accept")?;
        let (socket, _) = listener.accept()?;
        io::Write::write_all(&mut &socket, b"x")?;
        talk(&socket, Turn::Listen)?;
        side.tell("next")?;
    }
    Ok(())
}

/// The server that receives much, and answers.
pub(crate) fn takes_much(side: &mut Side) -> Result<()> {
    let listener = side.listen()?;
    for _ in KINDS {
        side.hear("accept")?;
        let (mut socket, _) = listener.accept()?;
        let mut got = vec![0; AMOUNT * 100];
        socket.read_exact(&mut got)?;
        data::compare_all(SPEAKER, &got, AMOUNT * 100)?;
        data::say(&socket, LISTENER)?;
        side.tell("next")?;
    }
    Ok(())
}

const KINDS: [OnSignal; 2] = [OnSignal::Restart, OnSignal::Return];

fn each(side: &mut Side, run: impl Fn(&mut Side, OnSignal) -> Result<()>) -> Result<()> {
    side.hear("listening")?;
    for then in KINDS {
        run(side, then)?;
        side.hear("next")?;
    }
    Ok(())
}

/// In accept: the server is interrupted before anybody connects.
pub(crate) fn accepting(side: &mut Side) -> Result<()> {
    let listener = TcpListener::bind(side.address)?;
    for then in KINDS {
        let connect = |side: &mut Side| side.tell("listening");
        let socket = interrupted(side, ACCEPT, then, connect, || {
            retried(then, || sys::accept(listener.as_fd()))
        })?;
        talk(&TcpStream::from(socket), Turn::Listen)?;
    }
    Ok(())
}

pub(crate) fn connects_twice(side: &mut Side) -> Result<()> {
    KINDS
        .iter()
        .try_for_each(|_| talk(&side.connect()?, Turn::Speak))
}

/// In connect, to a listener whose queue is full. The second call finds the connection made, or waits for it.
pub(crate) fn connecting(side: &mut Side) -> Result<()> {
    side.hear("listening")?;
    for then in KINDS {
        let filler = TcpStream::connect(side.address)?;
        let address = side.address;
        let socket = sys::tcp_socket(address)?;
        let again = |side: &mut Side| side.tell("accept");
        interrupted(side, CONNECT, then, again, || {
            retried(then, || sys::connect(socket.as_fd(), address))
        })?;
        talk(&filler, Turn::Speak)?;
        talk(&TcpStream::from(socket), Turn::Speak)?;
    }
    Ok(())
}

/// Its server: room for one in the queue.
pub(crate) fn full_queue(side: &mut Side) -> Result<()> {
    let listener = sys::listener_with_queue(side.address, 0)?;
    side.tell("listening")?;
    for _ in KINDS {
        side.hear("accept")?;
        for _ in 0..2 {
            talk(&listener.accept()?.0, Turn::Listen)?;
        }
    }
    Ok(())
}

/// Real-time signals, which are queued and never merged, come as fast as they can while a connection is handed over:
/// the handler runs once for each. They end with the hand-over: kernels before 6.1.187 and 6.12.105 end a sealed
/// connection when a signal interrupts a send that waits for room.
pub(crate) fn storm(side: &mut Side) -> Result<()> {
    HANDLED.store(0, Ordering::SeqCst);
    sys::handle(libc::SIGRTMIN() + 3, OnSignal::Restart)?;
    side.hear("listening")?;
    let mut sent = 0;
    for _ in 0..STORMS {
        let socket = TcpStream::connect(side.address)?;
        sent += stormed(&socket, side)?;
        talk(&socket, Turn::Speak)?;
    }
    let handled = HANDLED.load(Ordering::SeqCst);
    ensure!(handled == sent, "{sent} signals, {handled} handled");
    ensure!(sent as usize >= STORMS, "no storm: {sent} signals");
    Ok(())
}

/// Receives a byte under a storm; returns how many signals were sent. The server speaks when it has begun.
fn stormed(socket: &TcpStream, side: &mut Side) -> Result<u32> {
    let before = HANDLED.load(Ordering::SeqCst);
    let (sleeper, done) = (gettid(), AtomicBool::new(false));
    thread::scope(|scope| {
        let poker = scope.spawn(|| {
            let mut sent = 0;
            while !done.load(Ordering::SeqCst) {
                // A few wait in the queue at any time; it has an end.
                if before + sent - HANDLED.load(Ordering::SeqCst) < 4 {
                    sys::signal_thread(sleeper, libc::SIGRTMIN() + 3)?;
                    sent += 1;
                    if sent == 2 {
                        side.tell("stormed")?;
                    }
                }
            }
            anyhow::Ok(sent)
        });
        let received = sys::receive(socket.as_fd(), &mut [0]);
        done.store(true, Ordering::SeqCst);
        ensure!(received? == 1, "no greeting");
        poker.join().map_err(|_| anyhow::anyhow!("panicked"))?
    })
}

const STORMS: usize = 8;

pub(crate) fn greets_storm(side: &mut Side) -> Result<()> {
    let listener = side.listen()?;
    for _ in 0..STORMS {
        let (socket, _) = listener.accept()?;
        side.hear("stormed")?;
        io::Write::write_all(&mut &socket, b"x")?;
        talk(&socket, Turn::Listen)?;
    }
    Ok(())
}

/// The whole process is stopped, as by a shell, while the connection is handed over.
pub(crate) fn stopped(side: &mut Side) -> Result<()> {
    let socket = side.connect()?;
    let child = sys::spawn(|| {
        data::hear(&socket, SPEAKER)?;
        data::say(&socket, LISTENER)
    })?;
    drop(socket);
    wait::until_in_call(child, RECEIVE)?;
    kill(child, Signal::SIGSTOP)?;
    wait::until("the reader to stop", wait::PATIENCE, || {
        wait::is_in(child, "T")
    })?;
    side.tell("accept")?;
    side.hear("sent")?;
    kill(child, Signal::SIGCONT)?;
    sys::join(child)
}

/// Its server sends little enough to be done although nobody reads.
pub(crate) fn server_of_stopped(side: &mut Side) -> Result<()> {
    let socket = side.accept_when_told()?;
    data::say(&socket, SPEAKER)?;
    side.tell("sent")?;
    data::hear(&socket, LISTENER)
}

/// A debugger is attached to the reader.
pub(crate) fn debugged(side: &mut Side) -> Result<()> {
    let child = under_debugger(side)?;
    side.tell("accept")?;
    end_of_debugged(side, child)
}

/// A debugger has stopped the reader, and lets it go on after the connection's end.
pub(crate) fn debugger_stopped(side: &mut Side) -> Result<()> {
    let child = under_debugger(side)?;
    ptrace::interrupt(child)?;
    waitpid(child, Some(WaitPidFlag::__WALL))?;
    side.tell("accept")?;
    if side.is_sealed() {
        side.hear("reset")?;
    }
    ptrace::detach(child, None)?;
    end_of_debugged(side, child)
}

/// A reader asleep in recv, traced by this process.
fn under_debugger(side: &mut Side) -> Result<Pid> {
    let socket = side.connect()?;
    let sealed = side.is_sealed();
    let child = sys::spawn(|| match sealed {
        true => ensure_reset(&socket),
        false => Ok((&socket).read_exact(&mut [0; 1000])?),
    })?;
    wait::until_in_call(child, RECEIVE)?;
    ptrace::seize(child, ptrace::Options::empty())?;
    Ok(child)
}

fn end_of_debugged(side: &mut Side, child: Pid) -> Result<()> {
    sys::join(child)?;
    if side.is_sealed() {
        return Ok(());
    }
    side.tell("read")
}

/// Its server.
pub(crate) fn server_of_debugged(side: &mut Side) -> Result<()> {
    let mut socket = side.accept_when_told()?;
    if side.is_sealed() {
        ensure_reset(&socket)?;
        // Nobody may listen any more.
        let _ = side.tell("reset");
        return Ok(());
    }
    io::Write::write_all(&mut socket, &data::stream(SPEAKER, 1000))?;
    side.hear("read")
}
