//! A program on tokio, both ends: an echo server, and a client whose tasks send and receive at the same time.
//!
//! ```text
//! tokio-talk serve ADDR
//! tokio-talk ask ADDR MARKER     checks every answer; prints connections and bytes
//! ```
#![allow(clippy::print_stdout)]

use std::env;

use anyhow::{Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const CONNECTIONS: usize = 12;
/// One send each: less than, as much as, and more than one TLS record takes.
const SIZES: [usize; 6] = [1, 100, 16383, 16384, 16385, 80000];

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", address] => serve(address).await,
        ["ask", address, marker] => ask(address, marker).await,
        _ => bail!("see the head of this program's source for its arguments"),
    }
}

async fn serve(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(echo(client));
    }
}

/// Sends everything back; the end, too.
async fn echo(client: TcpStream) -> Result<()> {
    let (mut from, mut to) = client.into_split();
    copy(&mut from, &mut to).await?;
    to.shutdown().await?;
    Ok(())
}

async fn ask(address: &str, marker: &str) -> Result<()> {
    let mut tasks = JoinSet::new();
    for number in 0..CONNECTIONS {
        tasks.spawn(exchange(address.to_owned(), format!("{number} {marker}\n")));
    }
    let mut bytes = 0;
    while let Some(task) = tasks.join_next().await {
        bytes += task??;
    }
    println!("tokio: {CONNECTIONS} connections, {bytes} bytes");
    Ok(())
}

/// One connection: everything that was sent comes back, and then the end.
async fn exchange(address: String, line: String) -> Result<usize> {
    let data = line.repeat(SIZES.iter().sum::<usize>() / line.len() + 1);
    let (mut from, to) = TcpStream::connect(&address).await?.into_split();
    let sender = tokio::spawn(send(to, data.clone()));
    let mut back = Vec::new();
    from.read_to_end(&mut back).await?;
    let sent = sender.await??;
    ensure!(
        back == data.as_bytes()[..sent],
        "{} bytes came back of {sent}",
        back.len()
    );
    Ok(sent)
}

async fn send(mut to: OwnedWriteHalf, data: String) -> Result<usize> {
    let mut sent = 0;
    for size in SIZES {
        to.write_all(&data.as_bytes()[sent..sent + size]).await?;
        sent += size;
    }
    to.shutdown().await?;
    Ok(sent)
}
