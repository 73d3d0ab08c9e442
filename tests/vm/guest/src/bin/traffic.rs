//! Traffic to measure: a client and a server that do no more than send, receive and look at the clock.
//!
//! ```text
//! traffic serve ADDR [--ktls]
//! traffic rounds ADDR EXPONENT N [--ktls]   N requests of 2^EXPONENT bytes: nanoseconds for all of them
//! traffic connects ADDR N PAUSE [--ktls]    N connections: nanoseconds from connect to the first byte back, one a line;
//!                                           each begins PAUSE milliseconds after the one before has ended
//! traffic hold ADDR N                       N connections, each used once, then open until this is killed
//! traffic open ADDR N                       N connections that are never used, open until this is killed
//! traffic accept ADDR                       accepts connections and keeps them until this is killed
//! ```
//!
//! A request is one byte E, then 2^E - 1 bytes of anything; the server answers it with one byte. With `--ktls` both
//! ends set fixed keys on the connection themselves. Such keys protect nothing: they are what a program that seals
//! its own connections is compared by.
#![allow(clippy::print_stdout)]

use std::env;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{TcpTlsRx, TcpTlsTx, TcpUlp, TlsCryptoInfo};

/// As much as one TLS record takes, eight times: what programs that copy files use.
const BUFFER: usize = 128 << 10;
/// Tells the two directions' keys apart.
const CLIENT: u8 = 1;
const SERVER: u8 = 2;

fn main() -> Result<()> {
    let mut words: Vec<String> = env::args().skip(1).collect();
    let sealing = match words.iter().position(|word| word == "--ktls") {
        Some(at) => {
            words.remove(at);
            Sealing::FixedKeys
        }
        None => Sealing::None,
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", address] => serve(address, sealing),
        ["rounds", address, exponent, n] => rounds(address, exponent.parse()?, n.parse()?, sealing),
        ["connects", address, n, pause] => {
            let pause = Duration::from_millis(pause.parse()?);
            connects(address, n.parse()?, pause, sealing)
        }
        ["hold", address, n] => hold(address, n.parse()?),
        ["open", address, n] => open(address, n.parse()?),
        ["accept", address] => accept(address),
        _ => bail!("see the head of this program's source for its arguments"),
    }
}

/// What this program itself does to its connections.
#[derive(Clone, Copy)]
enum Sealing {
    None,
    FixedKeys,
}

fn serve(address: &str, sealing: Sealing) -> Result<()> {
    for client in TcpListener::bind(address)?.incoming() {
        let client = client?;
        // A client that goes away in the middle is no concern of the others.
        thread::spawn(move || answer(client, sealing));
    }
    Ok(())
}

fn answer(mut client: TcpStream, sealing: Sealing) -> Result<()> {
    sealing.apply(&client, SERVER, CLIENT)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let mut exponent = [0];
        if client.read(&mut exponent)? == 0 {
            return Ok(());
        }
        let mut missing = rest(exponent[0]);
        while missing > 0 {
            let most = missing.min(buffer.len());
            match client.read(&mut buffer[..most])? {
                0 => return Ok(()),
                some => missing -= some,
            }
        }
        client.write_all(&[0])?;
    }
}

fn rounds(address: &str, exponent: u8, n: u32, sealing: Sealing) -> Result<()> {
    let mut server = connect(address, sealing)?;
    // The cost of the connection itself is not part of this measurement.
    ask(&mut server, 0)?;
    let started = Instant::now();
    for _ in 0..n {
        ask(&mut server, exponent)?;
    }
    println!("{}", started.elapsed().as_nanos());
    Ok(())
}

fn connects(address: &str, n: u32, pause: Duration, sealing: Sealing) -> Result<()> {
    for _ in 0..n {
        thread::sleep(pause);
        let started = Instant::now();
        ask(&mut connect(address, sealing)?, 0)?;
        println!("{}", started.elapsed().as_nanos());
    }
    Ok(())
}

fn hold(address: &str, n: u32) -> Result<()> {
    let mut held = Vec::new();
    for _ in 0..n {
        let mut server = connect(address, Sealing::None)?;
        ask(&mut server, 0)?;
        held.push(server);
    }
    println!("holding {}", held.len());
    loop {
        thread::park();
    }
}

fn open(address: &str, n: u32) -> Result<()> {
    let opened: Vec<_> = (0..n)
        .map(|_| connect(address, Sealing::None))
        .collect::<Result<_>>()?;
    println!("open {}", opened.len());
    loop {
        thread::park();
    }
}

/// One thread for all: what is measured is the connections.
fn accept(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    let mut kept = Vec::new();
    loop {
        kept.push(listener.accept()?.0);
    }
}

fn connect(address: &str, sealing: Sealing) -> Result<TcpStream> {
    let server =
        TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    sealing.apply(&server, CLIENT, SERVER)?;
    Ok(server)
}

fn ask(server: &mut TcpStream, exponent: u8) -> io::Result<()> {
    let buffer = [exponent; BUFFER];
    let mut missing = 1 + rest(exponent);
    while missing > 0 {
        missing -= server.write(&buffer[..missing.min(BUFFER)])?;
    }
    server.read_exact(&mut [0])
}

/// How many bytes follow the first one of a request.
const fn rest(exponent: u8) -> usize {
    (1 << exponent) - 1
}

impl Sealing {
    fn apply(self, socket: &TcpStream, sends: u8, receives: u8) -> Result<()> {
        if let Self::FixedKeys = self {
            setsockopt(socket, TcpUlp::default(), b"tls").context("TCP_ULP")?;
            setsockopt(socket, TcpTlsRx, &fixed(receives)).context("TLS_RX")?;
            setsockopt(socket, TcpTlsTx, &fixed(sends)).context("TLS_TX")?;
        }
        Ok(())
    }
}

fn fixed(filler: u8) -> TlsCryptoInfo {
    TlsCryptoInfo::Aes128Gcm(libc::tls12_crypto_info_aes_gcm_128 {
        info: libc::tls_crypto_info {
            version: libc::TLS_1_3_VERSION,
            cipher_type: libc::TLS_CIPHER_AES_GCM_128,
        },
        iv: [filler; 8],
        key: [filler; 16],
        salt: [filler; 4],
        rec_seq: [0; 8],
    })
}
