//! Network policies: what the maps say of connections and packets. The rules are not here: the loader has worked out
//! who may do what with whom, and this looks it up. Without policies (generation 0) nothing of it runs.

#![deny(unsafe_code)]

use underseal_abi::{
    ANYBODY, Config, Counter, Direction, Endpoint, Mode, Reply, Ruling, Side, THIS_NODE, Way,
    grant_key, mode_of, ruling,
};

use crate::{
    apart, maps,
    packet::{self, IPPROTO_TCP, Ip, Kind, Packet, Talk},
};

/// [`Case::own`]: the client is a workload of this node, whose egress is judged.
pub const CLIENT: u32 = 1;
/// [`Case::own`]: the server is a workload of this node, whose ingress is judged.
pub const SERVER: u32 = 2;

/// What is judged. Without padding, since functions of `apart` get its address.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Case {
    /// As [`Config::policy`].
    pub generation: u32,
    /// Number of whoever connects.
    pub client: u32,
    /// Number of whoever is connected to.
    pub server: u32,
    /// Bits [`CLIENT`] and [`SERVER`].
    pub own: u32,
    /// Protocol as in a `grant_key`.
    pub protocol: u16,
    /// The server's port.
    pub port: u16,
    /// What would be without policies.
    pub way: Way,
    /// Bytes to count for the rules that let it pass; 0: nothing is counted.
    pub bytes: u32,
}

const _: () = assert!(size_of::<Case>() == 28);

impl Case {
    /// Makes it the other way round.
    #[inline(always)]
    pub fn reverse(&mut self, port: u16) {
        (self.client, self.server) = (self.server, self.client);
        self.own = (self.own & CLIENT) << 1 | (self.own & SERVER) >> 1;
        self.port = port;
    }
}

/// The number of an address, which is `endpoint`'s.
#[inline(always)]
pub fn number(generation: u32, ip: &[u8; 16], endpoint: &Endpoint) -> u32 {
    if endpoint.is_own() {
        endpoint.workload
    } else {
        apart::peer_number(generation, ip)
    }
}

/// How TCP would go without policies.
#[inline(always)]
pub fn way_of(config: &Config, peer: &Endpoint) -> Way {
    let mode: Mode = mode_of(config.mode);
    let is_elsewhere = peer.is_known() && peer.node != THIS_NODE;
    if is_elsewhere && mode.seals_between_nodes() {
        Way::SealedBetween
    } else if peer.is_own() && mode.seals_same_node() {
        Way::SealedInside
    } else {
        Way::Plain
    }
}

/// What becomes of it. Called through `apart`, like what follows.
#[inline(always)]
pub fn judge(case: &Case) -> Ruling {
    // What a workload has with itself does not leave it.
    if case.client == case.server && case.own == CLIENT | SERVER {
        return Ruling::Pass;
    }
    let client = if case.own & CLIENT == 0 {
        Side::OPEN
    } else {
        apart::side(case, Direction::Egress)
    };
    let server = if case.own & SERVER == 0 {
        Side::OPEN
    } else {
        apart::side(case, Direction::Ingress)
    };
    let ruling = ruling(client, server, case.way);
    if ruling.passes() && case.bytes != 0 {
        count(case, client);
        count(case, server);
    }
    ruling
}

#[inline(never)]
fn count(case: &Case, side: Side) {
    if let Some(rule) = side.rule() {
        maps::count_rule(case.generation, rule, case.bytes);
    }
}

/// What the rules of one end say.
#[inline(always)]
pub fn side(case: &Case, direction: Direction) -> Side {
    let own = match direction {
        Direction::Egress => case.client,
        Direction::Ingress => case.server,
    };
    match maps::subject(case.generation, own) {
        Some(it) if it.is_selected(direction) => {
            let anybody = granted(case, direction, Whom::Anybody);
            granted(case, direction, Whom::Peer).or(anybody)
        }
        subject => Side::of(subject, direction, None, None),
    }
}

/// Whom a grant names.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Whom {
    Peer,
    Anybody,
}

#[inline(never)]
fn granted(case: &Case, direction: Direction, whom: Whom) -> Side {
    let (own, peer) = match direction {
        Direction::Egress => (case.client, case.server),
        Direction::Ingress => (case.server, case.client),
    };
    let peer = if whom == Whom::Anybody { ANYBODY } else { peer };
    let what = (case.protocol as u8, case.port);
    let key = grant_key(case.generation, (own, direction), peer, what);
    maps::grant(key).map_or(Side::DENIED, Side::granted)
}

/// What becomes of a packet. `own` says which ends are workloads of this node, as in a [`Case`].
#[inline(always)]
pub fn packet(packet: Packet, ip: &Ip, own: u32) -> Ruling {
    let mut talk = Talk::default();
    if !apart::talk(packet, ip, &mut talk) {
        return Ruling::RefusedPolicy;
    }
    let config = maps::config();
    if config.policy == 0 {
        // They have been taken away since the caller looked.
        return Ruling::Pass;
    }
    let leave = config.flags & Config::KEEP_REVOKED != 0;
    match talk.kind {
        // Neighbour discovery keeps the link working and never leaves it. A reset is nothing but the end of a connection,
        // which the peer has to hear of.
        Kind::Link | Kind::Resets => return Ruling::Pass,
        Kind::Continues if leave => return Ruling::Pass,
        _ => {}
    }
    let case = &mut case(&config, ip, own);
    let tcp = case.way;
    if !matches!(talk.kind, Kind::Connects | Kind::Continues) {
        case.way = Way::Plain;
    }
    case.protocol = talk.protocol.into();
    case.port = talk.destination;
    case.bytes = packet.len();
    let ruling = apart::judge(case);
    if ruling.passes() {
        if talk.kind == Kind::Datagram {
            expect_answer(ip, &talk);
        }
        if ip.is_first_fragment() {
            expect_rest(ip, &talk);
        }
        return ruling;
    }
    match talk.kind {
        Kind::Later if is_expected(ip, &talk) => return Ruling::Pass,
        // It may belong to a connection that the other end has made, or be an answer to what has passed.
        Kind::Continues => case.reverse(talk.source),
        Kind::Datagram if is_expected(ip, &talk) => case.reverse(talk.source),
        Kind::Quotes => return quoted(packet, ip, (case, tcp)),
        _ => return ruling,
    }
    let back = apart::judge(case);
    if !back.passes() {
        return ruling;
    }
    if ip.is_first_fragment() {
        expect_rest(ip, &talk);
    }
    back
}

/// A packet that nothing is known of but its ends: it has no protocol and port yet, and its way is that of TCP.
#[inline(always)]
fn case(config: &Config, ip: &Ip, own: u32) -> Case {
    let source = maps::endpoint(&ip.source);
    let destination = maps::endpoint(&ip.destination);
    let peer = if own & CLIENT == 0 {
        &source
    } else {
        &destination
    };
    Case {
        generation: config.policy,
        client: number(config.policy, &ip.source, &source),
        server: number(config.policy, &ip.destination, &destination),
        own,
        protocol: 0,
        port: 0,
        way: way_of(config, peer),
        bytes: 0,
    }
}

/// An error message passes if the packet that it is about might have: it must be one of the receiver's.
#[inline(always)]
fn quoted(packet: Packet, ip: &Ip, (case, tcp): (&mut Case, Way)) -> Ruling {
    let (mut about, mut ports) = (Ip::default(), [0; 4]);
    if !apart::quoted(packet, ip, &mut about, &mut ports) || about.source != ip.destination {
        return Ruling::RefusedPolicy;
    }
    let (source, destination) = packet::ports(ports);
    if about.destination != ip.source {
        // A router may speak of what was for others, a workload may not.
        if case.own & CLIENT != 0 {
            return Ruling::RefusedPolicy;
        }
        case.client = number(
            case.generation,
            &about.destination,
            &maps::endpoint(&about.destination),
        );
    }
    case.protocol = about.protocol.into();
    if about.protocol == IPPROTO_TCP {
        case.way = tcp;
    }
    // The packet that it is about went the other way; and perhaps as an answer.
    case.port = source;
    let ruling = apart::judge(case);
    if ruling.passes() {
        return ruling;
    }
    case.reverse(destination);
    apart::judge(case)
}

/// From now on answers to this packet may come.
#[inline(never)]
fn expect_answer(ip: &Ip, talk: &Talk) {
    maps::expect(&Reply {
        source: ip.destination,
        destination: ip.source,
        source_port: talk.destination,
        destination_port: talk.source,
        protocol: talk.protocol.into(),
    });
}

/// From now on the other fragments of the packet that this one begins may come.
#[inline(never)]
fn expect_rest(ip: &Ip, talk: &Talk) {
    maps::expect(&fragment(ip, talk));
}

/// Whether this is an answer to what has passed, or a later fragment of it.
#[inline(never)]
fn is_expected(ip: &Ip, talk: &Talk) -> bool {
    let this = if talk.kind == Kind::Later {
        fragment(ip, talk)
    } else {
        Reply {
            source: ip.source,
            destination: ip.destination,
            source_port: talk.source,
            destination_port: talk.destination,
            protocol: talk.protocol.into(),
        }
    };
    maps::is_expected(&this)
}

/// How later fragments of a packet are known.
#[inline(always)]
fn fragment(ip: &Ip, talk: &Talk) -> Reply {
    const FRAGMENT: u32 = 1 << 16;
    Reply {
        source: ip.source,
        destination: ip.destination,
        source_port: ip.ident as u16,
        destination_port: (ip.ident >> 16) as u16,
        protocol: u32::from(talk.protocol) | FRAGMENT,
    }
}

/// The counter of a refusal; `None` if it passes.
#[inline(always)]
pub fn refusal(ruling: Ruling) -> Option<Counter> {
    match ruling {
        Ruling::Pass | Ruling::PassPlain => None,
        Ruling::RefusedMtls => Some(Counter::RefusedMtls),
        Ruling::RefusedPolicy => Some(Counter::RefusedPolicy),
    }
}
