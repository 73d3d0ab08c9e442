//! How two nodes go from one pair of WireGuard keys to another without losing a packet.

use std::collections::BTreeSet;
use std::io;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use underseal_abi::NoticeKind;

use super::bpf::maps;
use super::error::Error;
use super::notice::{self, Pair, Post};
use super::wireguard;
use crate::config::value::{InterfaceName, PublicKey};
use crate::op::{Moved, Switch};
use crate::rotation::{Contact, LIVE};
use crate::state::Endpoint;

/// Whether a peer that does not answer ends the apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insistence {
    /// If there is a session that would be lost.
    Sessions,
    /// Never: the old key goes, whoever uses it.
    Nothing,
}

/// Tells a peer to come by `interface`, and waits for its answer.
///
/// Returns whether it has answered.
///
/// # Errors
/// It does not answer, and has a session by the way that it has come so far. It has been told to stay with that.
pub fn switch(
    interface: &InterfaceName,
    switch: &Switch,
    insistence: Insistence,
) -> Result<bool, Error> {
    let Some((before, peer)) = &switch.before else {
        // Twice: what this node has sent by another way may arrive after the first.
        tell(interface, &switch.pairs, SHORT)?;
        thread::sleep(QUIET);
        return Ok(tell(interface, &switch.pairs, SHORT)? == 0);
    };
    let loses = has_session(before, peer)?;
    let insists = loses && insistence == Insistence::Sessions;
    let limit = if insists { ANSWER } else { SHORT };
    let missing = tell(interface, &switch.pairs, limit)?;
    if missing == 0 || !insists {
        return Ok(missing == 0);
    }
    tell(before, &switch.pairs, SHORT)?;
    let why = format!("no answer within {} s", ANSWER.as_secs());
    let hint = "it must have this key as [wireguard.next] and have been applied, with the same preshared key; generations, \
                public key and endpoint must be right, and a firewall must let the UDP ports pass";
    Err(Error::new(
        "reach by its other key peer",
        format!("{} through {interface}", switch.peer),
        io::Error::other(why),
    )
    .explained(hint))
}

/// Waits until nothing comes from these peers by `interface` any more. Something that goes on coming is not waited for
/// without end: it is not for us to say what it is.
///
/// # Errors
/// The device cannot be read, or one does not take packets.
pub fn drain(interface: &InterfaceName, peers: &[Moved]) -> Result<(), Error> {
    follow_up(interface, peers)?;
    let received = || -> Result<u64, Error> {
        let device = wireguard::read(interface)?;
        let peers = peers.iter().filter_map(|it| device.peers.get(&it.peer));
        Ok(peers.map(|peer| peer.received).sum())
    };
    let end = Instant::now() + DRAINED;
    let mut last = received()?;
    let (mut since, mut told) = (Instant::now(), Instant::now());
    while since.elapsed() < QUIET && Instant::now() < end {
        thread::sleep(LOOK);
        let now = received()?;
        if now == last {
            continue;
        }
        (last, since) = (now, Instant::now());
        if told.elapsed() >= QUIET {
            for Moved { to, pairs, .. } in peers {
                tell(to, pairs, SHORT)?;
            }
            told = Instant::now();
        }
    }
    Ok(())
}

/// A peer with two keys follows what comes by the next one (`follow` in `bpf/src/notice.rs`). What this node has sent by that
/// before it went back may arrive after the peer was told, and then the peer stays there. So a question is sent after it
/// by the same way: when the answer is here, all of it has arrived, and the peer is told again. One question only: a second
/// one could be late itself. A peer that reaches this node by its present key has nothing to follow, and does not answer.
fn follow_up(interface: &InterfaceName, peers: &[Moved]) -> Result<(), Error> {
    let pairs: Vec<Pair> = peers.iter().flat_map(|it| it.pairs.clone()).collect();
    let silent = say(NoticeKind::Ask, interface, &pairs, (SHORT, SHORT))?;
    for Moved { to, pairs, .. } in peers {
        if pairs.iter().any(|pair| !silent.contains(pair)) {
            tell(to, pairs, SHORT)?;
        }
    }
    Ok(())
}

/// Tells peers by which device they are reached, without waiting: one may have been started anew while it had two keys.
///
/// # Errors
/// A device is not there, or does not take packets.
pub fn announce(contacts: &[Contact]) -> Result<(), Error> {
    for contact in contacts {
        let post = Post::open(&contact.present)?;
        for pair in &contact.pairs {
            post.send(NoticeKind::Use, *pair)?;
        }
    }
    Ok(())
}

/// Asks peers which of this node's two keys they use, and notes the answers in the `IPCACHE` map. Who does not answer in
/// time stays where it is.
///
/// # Errors
/// A device is not there, or a map cannot be written.
pub fn ask(contacts: &[Contact]) -> Result<(), Error> {
    let devices: BTreeSet<&InterfaceName> = contacts
        .iter()
        .flat_map(|contact| std::iter::once(&contact.present).chain(&contact.next))
        .collect();
    let posts = devices.into_iter().map(Post::open);
    let posts = posts.collect::<Result<Vec<_>, _>>()?;
    let mut silent: Vec<&Contact> = contacts.iter().collect();
    let end = Instant::now() + ASKED;
    let mut again = Instant::now();
    while !silent.is_empty() && Instant::now() < end {
        if Instant::now() >= again {
            silent
                .iter()
                .try_for_each(|contact| question(&posts, contact))?;
            again += AGAIN;
        }
        notice::wait(&posts, again.min(end))?;
        for post in &posts {
            for (from, _) in post.answers()? {
                if let Some(at) = silent.iter().position(|contact| contact.is_at(from)) {
                    learn(silent.swap_remove(at), &post.interface)?;
                }
            }
        }
    }
    Ok(())
}

fn question(posts: &[Post], contact: &Contact) -> Result<(), Error> {
    for post in posts {
        let leads =
            post.interface == contact.present || Some(&post.interface) == contact.next.as_ref();
        for pair in contact.pairs.iter().filter(|_| leads) {
            post.send(NoticeKind::Ask, *pair)?;
        }
    }
    Ok(())
}

/// Notes that a peer is reached by `device`.
fn learn(contact: &Contact, device: &InterfaceName) -> Result<(), Error> {
    let device = Some(device).filter(|device| **device != contact.face);
    let ipcache = maps::ipcache()?;
    let networks = contact.pairs.iter().map(|(_, theirs)| theirs);
    for network in networks.collect::<BTreeSet<&IpNet>>() {
        let Some(endpoint) = ipcache.get(network) else {
            continue;
        };
        if endpoint.device.as_ref() != device {
            let endpoint = Endpoint {
                device: device.cloned(),
                ..endpoint.clone()
            };
            maps::set_endpoint(*network, &endpoint)?;
        }
    }
    Ok(())
}

fn has_session(interface: &InterfaceName, peer: &PublicKey) -> Result<bool, Error> {
    let device = wireguard::read(interface)?;
    let age = device
        .peers
        .get(peer)
        .and_then(|peer| peer.handshake_age(SystemTime::now()));
    Ok(age.is_some_and(|age| age < LIVE))
}

/// Says "use this" until all have answered or the time is over. Returns how many have not.
fn tell(interface: &InterfaceName, pairs: &[Pair], limit: Duration) -> Result<usize, Error> {
    Ok(say(NoticeKind::Use, interface, pairs, (limit, AGAIN))?.len())
}

/// Says something until all have answered or the time is over, each so often. Returns who has not.
fn say(
    kind: NoticeKind,
    interface: &InterfaceName,
    pairs: &[Pair],
    (limit, pause): (Duration, Duration),
) -> Result<Vec<Pair>, Error> {
    let posts = [Post::open(interface)?];
    let [post] = &posts;
    let mut missing: Vec<Pair> = pairs.to_vec();
    let end = Instant::now() + limit;
    let mut again = Instant::now();
    while !missing.is_empty() && Instant::now() < end {
        if Instant::now() >= again {
            missing.iter().try_for_each(|pair| post.send(kind, *pair))?;
            again += pause;
        }
        notice::wait(&posts, again.min(end))?;
        let answers = post.answers()?;
        missing.retain(|(own, theirs)| !answers.contains(&(theirs.network(), own.network())));
    }
    Ok(missing)
}

/// How long an answer is waited for that must come.
const ANSWER: Duration = Duration::from_secs(10);
/// How long one is waited for that need not.
const SHORT: Duration = Duration::from_secs(2);
/// How long all peers together have for answering which key they use.
const ASKED: Duration = Duration::from_secs(2);
/// After how long a notice is sent again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long nothing must have come, and how long that is waited for.
const QUIET: Duration = Duration::from_millis(300);
const DRAINED: Duration = Duration::from_secs(5);
/// How often the counters are looked at: the kernel tells nobody of them.
const LOOK: Duration = Duration::from_millis(50);
