//! The maps, and the few accesses to them that need `unsafe`. Names are `underseal_abi::names`.

use core::ptr::{addr_of, null_mut};

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    btf_maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage, lpm_trie::Key,
    },
    helpers::generated::{bpf_map_lookup_elem, bpf_sk_storage_get},
    macros::btf_map,
};
use underseal_abi::{
    Bundle, Chain, Config, Conn, Counter, DnsNames, Endpoint, Event, EventKind, Flow, Grant,
    KeyLimit, Mode, Named, Netns, Node, PeerWorkload, Policy, Reply, Seal, Sleeper, Socket, State,
    Subject, SubjectKey, Tally, WORLD, Workload, mode_of, names::RULES_HALF, peer_key,
};

use crate::{
    apart,
    sys::{self, Sock, add},
};

#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
static IPCACHE: LpmTrie<[u8; 16], Endpoint, 65536> = LpmTrie::new();
#[btf_map]
static NETNS: HashMap<u64, Netns, 4096> = HashMap::new();
#[btf_map]
static WORKLOADS: HashMap<u32, Workload, 4096, { aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
/// Declared here so that it lives and is pinned with the rest; the loader writes it, the helper
/// reads it.
#[btf_map]
static NODES: HashMap<u32, Node, 4096, { aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
static CONNS: HashMap<u64, Conn, 131072, { aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
static SLEEPERS: HashMap<Sleeper, u64, 65536> = HashMap::new();
#[btf_map]
static EVENTS: RingBuf<Event, 1048576> = RingBuf::new();
#[btf_map]
static COUNTERS: PerCpuArray<Tally, 64> = PerCpuArray::new();
/// Declared here so that it lives and is pinned with the rest; only the helper writes it.
#[btf_map]
static HELPER_COUNTERS: Array<u64, 64> = Array::new();
#[btf_map]
static STATES: SkStorage<u32> = SkStorage::new();
#[btf_map]
static SOCKETS: SkStorage<Socket> = SkStorage::new();
#[btf_map]
static FLOWS: SkStorage<Flow> = SkStorage::new();
/// Only the helper writes it.
#[btf_map]
static KEY_LIMITS: SkStorage<KeyLimit> = SkStorage::new();
/// These three are declared here so that they live and are pinned with the rest; user space alone uses them.
#[btf_map]
static SEALS: HashMap<u64, Seal, 131072, { aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
static CHAINS: HashMap<[u8; 32], Chain, 4096, { aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
static BUNDLES: HashMap<u32, Bundle, 256, { aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
/// The helper alone uses this one.
#[btf_map]
static PEER_WORKLOADS: HashMap<
    [u8; 16],
    PeerWorkload,
    16384,
    { aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
/// And this one.
#[btf_map]
static DNS_NAMES: HashMap<
    Named,
    DnsNames,
    20480,
    { aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
/// Two generations have room in each of these three.
#[btf_map]
static SUBJECTS: HashMap<
    SubjectKey,
    Subject,
    8192,
    { aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
#[btf_map]
static PEERS: LpmTrie<[u8; 20], u32, 65536> = LpmTrie::new();
#[btf_map]
static GRANTS: LpmTrie<[u8; 16], Grant, 262144> = LpmTrie::new();
#[btf_map]
static RULES: PerCpuArray<Tally, 8192> = PerCpuArray::new();
#[btf_map]
static REPLIES: LruHashMap<Reply, u64, 65536> = LruHashMap::new();

/// Counts one packet, connection or call of `bytes`.
#[inline(always)]
pub fn count(counter: Counter, bytes: u32) {
    if let Some(tally) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a value of a per-CPU array stays valid for the run of the program.
        unsafe {
            add(&raw mut (*tally).packets, 1);
            add(&raw mut (*tally).bytes, bytes.into());
        }
    }
}

/// What the loader has configured. All zeros before the first apply: no WireGuard, mode `never`,
/// nothing allowed.
#[inline(always)]
pub fn config() -> Config {
    CONFIG.get(0).copied().unwrap_or_default()
}

/// The part of `config` that decides paths.
#[inline(always)]
pub fn policy(config: &Config) -> Policy {
    let mode: Mode = mode_of(config.mode);
    Policy {
        mode,
        allow_outside: config.flags & Config::ALLOW_OUTSIDE != 0,
    }
}

/// Whose address `ip` is; zeros for nobody's. An `Option` would have nothing behind its `None`, not even zeros, and the
/// verifier refuses to have that copied.
#[inline(always)]
pub fn endpoint(ip: &[u8; 16]) -> Endpoint {
    let mut endpoint = Endpoint {
        node: 0,
        workload: 0,
        ifindex: 0,
        next: 0,
    };
    apart::find_endpoint(ip, &mut endpoint);
    endpoint
}

/// Notes which device leads to the network that has `ip`; nothing if that is not known.
#[inline(never)]
pub fn set_leading(ip: &[u8; 16], ifindex: u32) {
    let key = Key::new(128, *ip);
    // SAFETY: the map and the key are what the helper demands: this map, and a key of its size.
    let value: *mut Endpoint =
        unsafe { bpf_map_lookup_elem(addr_of!(IPCACHE).cast_mut().cast(), addr_of!(key).cast()) }
            .cast();
    if !value.is_null() {
        // SAFETY: not null, so it points to an element; a u32 store, and elements are freed after RCU.
        unsafe { (&raw mut (*value).ifindex).write_volatile(ifindex) }
    }
}

/// The same, if it is anybody's. Called through `apart`, like what follows, and so with a stack of its own: all functions
/// of a program share 512 bytes.
#[inline(always)]
pub fn find_endpoint(ip: &[u8; 16], found: &mut Endpoint) {
    if let Some(endpoint) = IPCACHE.get(&Key::new(128, *ip)) {
        *found = *endpoint;
    }
}

/// The number that rules have for an address which is no workload of this node.
#[inline(always)]
pub fn peer_number(generation: u32, ip: &[u8; 16]) -> u32 {
    PEERS
        .get(&Key::new(160, peer_key(generation, ip)))
        .copied()
        .unwrap_or(WORLD)
}

/// What policies say of a workload of this node.
#[inline(always)]
pub fn subject(generation: u32, workload: u32) -> Option<Subject> {
    let key = SubjectKey {
        generation,
        workload,
    };
    // SAFETY: the loader writes whole elements of a generation that is not in force yet, and deletes those of one that
    // is not in force any more; elements are freed after RCU.
    unsafe { SUBJECTS.get(key) }.copied()
}

/// The grant with the longest prefix of this `grant_key`.
#[inline(always)]
pub fn grant(key: [u8; 16]) -> Option<Grant> {
    GRANTS.get(&Key::new(128, key)).copied()
}

/// Counts a packet that a rule has let pass.
#[inline(always)]
pub fn count_rule(generation: u32, rule: u32, bytes: u32) {
    let half = if generation & 1 == 1 { 0 } else { RULES_HALF };
    if let Some(tally) = RULES.get_ptr_mut(half + rule) {
        // SAFETY: as in `count`.
        unsafe {
            add(&raw mut (*tally).packets, 1);
            add(&raw mut (*tally).bytes, bytes.into());
        }
    }
}

/// From now on this packet may come. A full table forgets the one that was used longest ago.
#[inline(always)]
pub fn expect(reply: &Reply) {
    let _ = REPLIES.insert(reply, sys::now(), 0);
}

/// Whether this packet may come as an answer.
#[inline(always)]
pub fn is_expected(reply: &Reply) -> bool {
    // SAFETY: a copy of a u64 that is stored whole.
    unsafe { REPLIES.get(reply) }
        .is_some_and(|since| sys::now().wrapping_sub(*since) < Reply::PATIENCE)
}

/// The namespace with this cookie, if it has been taken over.
#[inline(always)]
pub fn netns(cookie: u64) -> Option<Netns> {
    // SAFETY: the loader replaces whole elements; a copy of an old one is as good as the new one.
    unsafe { NETNS.get(cookie) }.copied()
}

/// Puts `conn` into the table of connections that are or shall be sealed; false if it is full.
#[inline(always)]
pub fn insert_conn(conn: &Conn) -> bool {
    CONNS.insert(conn.cookie, conn, 0).is_ok()
}

/// Writes the process that owns a held connection.
#[inline(always)]
pub fn set_owner(cookie: u64, tgid: u32) {
    if let Some(conn) = CONNS.get_ptr_mut(cookie) {
        // SAFETY: a u32 store into an element found just now; elements are freed after RCU.
        unsafe { (*conn).tgid = tgid }
    }
}

/// Writes that a task on a held connection could not be recorded.
#[inline(always)]
pub fn set_unrecorded(cookie: u64) {
    if let Some(conn) = CONNS.get_ptr_mut(cookie) {
        // SAFETY: as in `set_owner`.
        unsafe { (*conn).unrecorded = 1 }
    }
}

/// Notes the state of a connection for those who look at the table.
#[inline(always)]
pub fn set_shown_state(cookie: u64, state: State) {
    if let Some(conn) = CONNS.get_ptr_mut(cookie) {
        // SAFETY: as in `set_owner`.
        unsafe { (*conn).state = state as u32 }
    }
}

/// Whether the connection with this cookie still waits for its keys, as far as the table knows.
#[inline(always)]
pub fn is_held(cookie: u64) -> bool {
    // SAFETY: a copy of one u32; elements are freed after RCU.
    unsafe { CONNS.get(cookie) }.is_some_and(|conn| conn.state == State::Held as u32)
}

/// Whether the table has the connection with this cookie.
#[inline(always)]
pub fn has_conn(cookie: u64) -> bool {
    CONNS.get_ptr(cookie).is_some()
}

/// Takes a connection out of the table.
#[inline(always)]
pub fn remove_conn(cookie: u64) {
    let _ = CONNS.remove(cookie);
}

/// Records that a task is about to enter send or recv; false if that was not possible.
#[inline(always)]
pub fn insert_sleeper(sleeper: &Sleeper, now: u64) -> bool {
    SLEEPERS.insert(sleeper, now, 0).is_ok()
}

/// Takes such a record back.
#[inline(always)]
pub fn remove_sleeper(sleeper: &Sleeper) {
    let _ = SLEEPERS.remove(sleeper);
}

/// Tells the helper; false if the ring is full. That loses the message, not the connection: the helper
/// reads the table of connections when it finds that it has missed some.
#[inline(always)]
pub fn tell(kind: EventKind, reason: u32, conn: &Conn) -> bool {
    apart::tell(kind, reason, conn)
}

/// The same, as `apart` calls it.
#[inline(always)]
pub fn send(kind: u32, reason: u32, conn: &Conn) -> bool {
    let Some(mut event) = EVENTS.reserve(0) else {
        count(Counter::EventLost, 0);
        return false;
    };
    event.write(Event {
        kind,
        reason,
        conn: *conn,
    });
    event.submit(0);
    true
}

/// Values kept with a socket.
pub mod storage {
    use super::*;

    #[inline(always)]
    fn get<T>(map: &SkStorage<T>, sock: Sock, initial: *mut T, create: bool) -> *mut T {
        let flags = if create {
            u64::from(BPF_SK_STORAGE_GET_F_CREATE)
        } else {
            0
        };
        // SAFETY: `sock` is a socket pointer that the verifier knows; the helper checks the rest.
        unsafe {
            bpf_sk_storage_get(
                addr_of!(*map).cast_mut().cast(),
                sock.0,
                initial.cast(),
                flags,
            )
        }
        .cast()
    }

    /// The state of a socket; `None` if Underseal has none for it.
    #[inline(always)]
    pub fn state(sock: Sock) -> Option<State> {
        let state = get(&STATES, sock, null_mut(), false);
        if state.is_null() {
            return None;
        }
        // SAFETY: not null, so it points to the value. Volatile: user space may write it.
        State::from_raw(unsafe { state.read_volatile() })
    }

    /// Sets the state of a socket; false if there is no memory for it.
    #[inline(always)]
    pub fn set_state(sock: Sock, state: State) -> bool {
        let mut initial = state as u32;
        let stored = get(&STATES, sock, &raw mut initial, true);
        if stored.is_null() {
            return false;
        }
        // SAFETY: not null, so it points to the value.
        unsafe { stored.write_volatile(state as u32) };
        true
    }

    /// What is kept with a socket.
    #[inline(always)]
    pub fn socket(sock: Sock) -> Option<&'static mut Socket> {
        // SAFETY: null or a value of this socket's storage, which outlives the program's run.
        unsafe { get(&SOCKETS, sock, null_mut(), false).as_mut() }
    }

    /// What is kept with a socket, created as zeros if need be; `None` if there is no memory.
    #[inline(always)]
    pub fn socket_or_new(sock: Sock) -> Option<&'static mut Socket> {
        // SAFETY: as in `socket`.
        unsafe { get(&SOCKETS, sock, null_mut(), true).as_mut() }
    }

    /// The record walker of a socket, or null.
    #[inline(always)]
    pub fn flow(sock: Sock) -> *mut Flow {
        get(&FLOWS, sock, null_mut(), false)
    }

    /// What the key that a sealed socket sends with may still be used for.
    #[inline(always)]
    pub fn key_limit(sock: Sock) -> Option<KeyLimit> {
        // SAFETY: null, or a value of this socket's storage.
        unsafe { get(&KEY_LIMITS, sock, null_mut(), false).as_ref() }.copied()
    }

    /// What the record walker of a socket has counted.
    #[inline(always)]
    pub fn counted(sock: Sock) -> Option<Flow> {
        // SAFETY: null, or a value of this socket's storage.
        unsafe { flow(sock).as_ref() }.copied()
    }

    /// Where the record walker of a socket expects the next header.
    #[inline(always)]
    pub fn flow_start(sock: Sock) -> Option<u32> {
        // SAFETY: null, or a value of this socket's storage.
        unsafe { flow(sock).as_ref() }.map(|flow| flow.next)
    }

    /// Starts the record walker of a socket at sequence number `next`.
    #[inline(always)]
    pub fn start_flow(sock: Sock, next: u32) -> bool {
        let flow = get(&FLOWS, sock, null_mut(), true);
        if flow.is_null() {
            return false;
        }
        // SAFETY: not null, so it points to the value.
        unsafe { flow.write(Flow::starting_at(next)) };
        true
    }
}
