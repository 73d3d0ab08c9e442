//! Namespaces and veth pairs for the tests of this folder. They need root, or `unshare -rn`; without
//! it they fail rather than pass unseen.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::thread;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use nix::sched::{CloneFlags, unshare};

use super::link::{self, Link};
use super::netlink;
use super::netns::Netns;

/// A new, empty network namespace.
pub(crate) fn new_netns() -> Netns {
    let maker = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root: run it with unshare -rn");
        Netns::open(Path::new("/proc/thread-self/ns/net"))
            .unwrap()
            .unwrap()
    });
    maker.join().unwrap()
}

/// A veth pair in the calling thread's namespace; returns the end called `name`.
pub(crate) fn veth(name: &str, peer: &str) -> Link {
    let mut other = LinkMessage::default();
    other.attributes = vec![LinkAttribute::IfName(peer.to_owned())];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]),
    ];
    netlink::request(
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
    .unwrap();
    link::named(name).unwrap()
}

/// A veth pair from the calling thread's namespace into `netns`; returns the end that is here.
pub(crate) fn veth_into(name: &str, peer: &str, netns: &Netns) -> Link {
    let here = veth(name, peer);
    let mut message = LinkMessage::default();
    message.header.index = link::named(peer).unwrap().index;
    message.attributes = vec![LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd())];
    netlink::request(RouteNetlinkMessage::SetLink(message), 0).unwrap();
    here
}
