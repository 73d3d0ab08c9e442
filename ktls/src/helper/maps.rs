//! The pinned maps, as the helper uses them.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use aya::maps::{
    Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf, lpm_trie::Key as Network,
};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use underseal_abi::{
    ABI_VERSION, Bundle as RawBundle, Chain, Config, Conn, Counter, DnsNames, Endpoint, Event,
    Flow, HelperCounter, KeyLimit, Mode, Named, Node, PeerWorkload, Seal, Sleeper, Socket, State,
    Tally, TaskFile, Workload, mode_of, names,
};

use super::{names::text, reset::in_namespace, sys};
use crate::{Bundle, map_entries};

/// `BPF_EXIST`: an element that BPF has removed meanwhile is not brought back.
const ONLY_IF_THERE: u64 = 2;

/// All of them, open.
pub(super) struct Maps {
    config: Array<MapData, Config>,
    ipcache: LpmTrie<MapData, [u8; 16], Endpoint>,
    nodes: HashMap<MapData, u32, Node>,
    conns: HashMap<MapData, u64, Conn>,
    sleepers: HashMap<MapData, Sleeper, u64>,
    /// The same, to read many at once.
    all_sleepers: OwnedFd,
    all_conns: OwnedFd,
    workloads: HashMap<MapData, u32, Workload>,
    counters: PerCpuArray<MapData, Tally>,
    helper_counters: Array<MapData, u64>,
    seals: HashMap<MapData, u64, Seal>,
    chains: HashMap<MapData, [u8; 32], Chain>,
    bundles: HashMap<MapData, u32, RawBundle>,
    peer_workloads: HashMap<MapData, [u8; 16], PeerWorkload>,
    dns_names: HashMap<MapData, Named, DnsNames>,
    states: OwnedFd,
    sockets: OwnedFd,
    key_limits: OwnedFd,
    flows: OwnedFd,
    task_file: OwnedFd,
    stranded: OwnedFd,
    /// Messages from BPF.
    pub(super) events: RingBuf<MapData>,
}

/// The folder of the pinned maps.
pub(super) fn folder() -> PathBuf {
    Path::new(names::PIN_ROOT).join(names::MAPS)
}

impl Maps {
    /// Opens the maps that `underseal apply` has pinned.
    ///
    /// # Errors
    /// A missing map, or one with another ABI version.
    pub(super) fn open() -> Result<Self> {
        let config: Array<_, Config> = Array::try_from(Map::Array(pinned(names::CONFIG)?))?;
        let abi = config.get(&0, 0).context("cannot read the map CONFIG")?.abi;
        if abi != ABI_VERSION {
            bail!(
                "the pinned maps have ABI version {abi}, this helper speaks {ABI_VERSION}\n  \
                 hint: install underseal and underseal-handshake of one version, then run `underseal apply`"
            );
        }
        Ok(Self {
            config,
            ipcache: LpmTrie::try_from(Map::LpmTrie(pinned(names::IPCACHE)?))?,
            nodes: HashMap::try_from(Map::HashMap(pinned(names::NODES)?))?,
            conns: HashMap::try_from(Map::HashMap(pinned(names::CONNS)?))?,
            sleepers: HashMap::try_from(Map::HashMap(pinned(names::SLEEPERS)?))?,
            all_sleepers: object(names::MAPS, names::SLEEPERS)?,
            all_conns: object(names::MAPS, names::CONNS)?,
            workloads: HashMap::try_from(Map::HashMap(pinned(names::WORKLOADS)?))?,
            counters: PerCpuArray::try_from(Map::PerCpuArray(pinned(names::COUNTERS)?))?,
            helper_counters: Array::try_from(Map::Array(pinned(names::HELPER_COUNTERS)?))?,
            seals: HashMap::try_from(Map::HashMap(pinned(names::SEALS)?))?,
            chains: HashMap::try_from(Map::HashMap(pinned(names::CHAINS)?))?,
            bundles: HashMap::try_from(Map::HashMap(pinned(names::BUNDLES)?))?,
            peer_workloads: HashMap::try_from(Map::HashMap(pinned(names::PEER_WORKLOADS)?))?,
            dns_names: HashMap::try_from(Map::HashMap(pinned(names::DNS_NAMES)?))?,
            states: object(names::MAPS, names::STATES)?,
            sockets: object(names::MAPS, names::SOCKETS)?,
            key_limits: object(names::MAPS, names::KEY_LIMITS)?,
            flows: object(names::MAPS, names::FLOWS)?,
            task_file: object(names::PROGS, names::ITER_TASK_FILE)?,
            stranded: object(names::PROGS, names::ITER_STRANDED)?,
            events: RingBuf::try_from(Map::RingBuf(pinned(names::EVENTS)?))?,
        })
    }

    /// Which connections are sealed, as configured now. What cannot be read seals.
    pub(super) fn mode(&self) -> Mode {
        let config = self.config.get(&0, 0);
        config.map_or(Mode::Always, |config| mode_of(config.mode))
    }

    /// Whose an address is.
    pub(super) fn endpoint(&self, address: &[u8; 16]) -> Option<Endpoint> {
        self.ipcache.get(&Network::new(128, *address), 0).ok()
    }

    /// The workload of another node that has this address, if the configuration knows it.
    pub(super) fn peer_workload(&self, address: &[u8; 16]) -> Option<PeerWorkload> {
        self.peer_workloads.get(address, 0).ok()
    }

    /// The DNS names that the certificate of a workload must have.
    ///
    /// # Errors
    /// It cannot be read whether there are some.
    pub(super) fn dns_names(&self, whose: &Named) -> Result<Vec<String>> {
        match self.dns_names.get(whose, 0) {
            Ok(value) => Ok(unpack(&value)),
            Err(MapError::KeyNotFound) => Ok(Vec::new()),
            Err(error) => Err(error).context("cannot read which DNS names are needed"),
        }
    }

    /// The same of all workloads of whose some are needed.
    pub(super) fn all_dns_names(&self) -> std::collections::HashMap<Named, Vec<String>> {
        let entries = self.dns_names.iter().filter_map(Result::ok);
        entries.map(|(key, value)| (key, unpack(&value))).collect()
    }

    /// Where the nodes' helpers are.
    pub(super) fn nodes(&self) -> Vec<(u32, Node)> {
        self.nodes.iter().filter_map(Result::ok).collect()
    }

    /// Every end that waits: for its keys, or to learn that there will be none.
    ///
    /// # Errors
    /// The kernel lacks memory.
    pub(super) fn held(&self) -> io::Result<Vec<Conn>> {
        // One that is added behind the reader's back comes as an event.
        let waits =
            |conn: &Conn| conn.state == State::Held as u32 || conn.state == State::Ending as u32;
        self.all(waits)
    }

    /// Sealed ends that are held for a new key.
    ///
    /// # Errors
    /// The kernel lacks memory.
    pub(super) fn paused(&self) -> io::Result<Vec<Conn>> {
        self.all(|conn| conn.state == State::Pausing as u32)
    }

    /// Every end in the table.
    ///
    /// # Errors
    /// The kernel lacks memory.
    pub(super) fn conns(&self) -> io::Result<Vec<Conn>> {
        self.all(|_| true)
    }

    fn all(&self, wanted: impl Fn(&Conn) -> bool) -> io::Result<Vec<Conn>> {
        let conns = map_entries::<u64, Conn>(self.all_conns.as_fd())?;
        Ok(conns
            .into_iter()
            .map(|(_, conn)| conn)
            .filter(wanted)
            .collect())
    }

    /// Whether the table of connections has this one.
    pub(super) fn has_conn(&self, cookie: u64) -> bool {
        self.conns.get(&cookie, 0).is_ok()
    }

    /// Ends that wait for keys in `namespace` and are not in the table of connections, because it
    /// was full.
    pub(super) fn stranded(&self, namespace: &File) -> io::Result<Vec<Conn>> {
        let program = self.stranded.as_fd();
        let bytes = in_namespace(namespace, || {
            let mut bytes = Vec::new();
            sys::iterate(program)?.read_to_end(&mut bytes)?;
            Ok(bytes)
        })?;
        Ok(sys::records(&bytes))
    }

    /// The ids of all workloads and the paths of their network namespaces.
    pub(super) fn namespaces(&self) -> Vec<(u32, PathBuf)> {
        let path = |workload: &Workload| PathBuf::from(text(&workload.netns));
        self.workloads
            .iter()
            .filter_map(Result::ok)
            .map(|(id, workload)| (id, path(&workload)))
            .collect()
    }

    /// Notes the state of a connection for those who look at the table.
    pub(super) fn show_state(&mut self, conn: &Conn, state: State) {
        let conn = Conn {
            state: state as u32,
            ..*conn
        };
        // It may be closed by now, and then there is nothing to show.
        let _ = self.conns.insert(conn.cookie, conn, ONLY_IF_THERE);
    }

    /// The tasks recorded on any of `cookies`, which are sorted.
    ///
    /// # Errors
    /// The kernel lacks memory: whether a task sleeps there is not known then.
    pub(super) fn sleepers(&self, cookies: &[u64]) -> io::Result<Vec<Sleeper>> {
        let on_these = |s: &Sleeper| cookies.binary_search(&s.cookie).is_ok();
        let sleepers = map_entries::<Sleeper, u64>(self.all_sleepers.as_fd())?;
        let sleepers = sleepers.into_iter().map(|(sleeper, _)| sleeper);
        Ok(sleepers.filter(on_these).collect())
    }

    /// Whether the table says that a task that splices could not be recorded.
    pub(super) fn is_unrecorded(&self, cookie: u64) -> bool {
        // A connection that is closed by now has no entry, and nothing to hand over.
        self.conns
            .get(&cookie, 0)
            .is_ok_and(|conn| conn.unrecorded != 0)
    }

    /// Deletes the record of a task.
    pub(super) fn remove_sleeper(&mut self, sleeper: &Sleeper) {
        // Gone already is as good.
        let _ = self.sleepers.remove(sleeper);
    }

    /// Deletes the records of tasks that slept on the sockets `closed` before that, and those older
    /// than `stale` whose socket is in no table: of its end no message has come.
    pub(super) fn clear_sleepers(&mut self, closed: &BTreeMap<u64, Duration>, stale: Duration) {
        let now = sys::monotonic();
        let is_over = |sleeper: &Sleeper, since: Duration| {
            let closed = closed.get(&sleeper.cookie);
            let is_stale = now.saturating_sub(since) > stale;
            closed.is_some_and(|at| since <= *at) || is_stale && !self.has_conn(sleeper.cookie)
        };
        // Those that cannot be read now are deleted later, as stale ones.
        let sleepers = map_entries::<Sleeper, u64>(self.all_sleepers.as_fd()).unwrap_or_default();
        let dead: Vec<Sleeper> = sleepers
            .into_iter()
            .filter(|(sleeper, since)| is_over(sleeper, Duration::from_nanos(*since)))
            .map(|(sleeper, _)| sleeper)
            .collect();
        for sleeper in &dead {
            self.remove_sleeper(sleeper);
        }
    }

    /// Whether connections are ended whose peer is revoked, as configured now. What cannot be read ends them.
    pub(super) fn closes_revoked(&self) -> bool {
        let config = self.config.get(&0, 0);
        config.map_or(true, |config| config.flags & Config::KEEP_REVOKED == 0)
    }

    /// The bundles of other trust domains.
    pub(super) fn bundles(&self) -> Vec<Bundle> {
        let entries = self.bundles.iter().filter_map(Result::ok);
        let mut entries: Vec<(u32, RawBundle)> = entries.collect();
        entries.sort_unstable_by_key(|(number, _)| *number);
        let bundle = |(_, raw): (u32, RawBundle)| Bundle {
            trust_domain: text(&raw.trust_domain).to_owned(),
            file: text(&raw.file).into(),
        };
        entries.into_iter().map(bundle).collect()
    }

    /// Notes with what certificates the peer of `conn` was accepted.
    ///
    /// # Errors
    /// There is no room, not even after what is of no use any more was deleted.
    pub(super) fn note_seal(
        &mut self,
        conn: &Conn,
        chain: &[CertificateDer<'static>],
    ) -> io::Result<()> {
        let (hash, chain) = pack(chain);
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        let seal = Seal {
            chain: hash,
            at: since_epoch.unwrap_or_default().as_secs(),
            workload: conn.workload,
            reserved: 0,
        };
        // A chain that is too long is in no map: its connection ends when trust changes.
        if let Some(chain) = chain
            && self.chains.get(&hash, 0).is_err()
            && self.chains.insert(hash, *chain, 0).is_err()
        {
            self.clear_seals();
            self.chains
                .insert(hash, *chain, 0)
                .map_err(io::Error::other)?;
        }
        if self.seals.insert(conn.cookie, seal, 0).is_err() {
            self.clear_seals();
            let inserted = self.seals.insert(conn.cookie, seal, 0);
            inserted.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Deletes what belongs to no connection.
    fn clear_seals(&mut self) {
        let mut used = HashSet::new();
        for (cookie, seal) in self.seals() {
            if self.has_conn(cookie) {
                used.insert(seal.chain);
            } else {
                self.remove_seal(cookie);
            }
        }
        self.clear_chains(&used);
    }

    /// What is known of sealed ends, by cookie.
    pub(super) fn seals(&self) -> Vec<(u64, Seal)> {
        self.seals.iter().filter_map(Result::ok).collect()
    }

    /// Forgets what is known of an end.
    pub(super) fn remove_seal(&mut self, cookie: u64) {
        // It may never have been sealed.
        let _ = self.seals.remove(&cookie);
    }

    /// Certificates by their SHA-256.
    pub(super) fn chain(&self, hash: &[u8; 32]) -> Option<Chain> {
        self.chains.get(hash, 0).ok()
    }

    /// Deletes all certificates but those `used`.
    pub(super) fn clear_chains(&mut self, used: &HashSet<[u8; 32]>) {
        let known: Vec<[u8; 32]> = self.chains.keys().filter_map(Result::ok).collect();
        for hash in known.iter().filter(|hash| !used.contains(*hash)) {
            // Gone already is as good.
            let _ = self.chains.remove(hash);
        }
    }

    /// An end in the table of connections.
    pub(super) fn conn(&self, cookie: u64) -> Option<Conn> {
        self.conns.get(&cookie, 0).ok()
    }

    /// All workloads.
    pub(super) fn workloads(&self) -> Vec<(u32, Workload)> {
        self.workloads.iter().filter_map(Result::ok).collect()
    }

    /// Sets a counter that shows how many there are now.
    pub(super) fn show(&mut self, counter: HelperCounter, now: u64) {
        let _ = self.helper_counters.set(counter as u32, now, 0);
    }

    /// What the loader has said of a workload.
    pub(super) fn workload(&self, id: u32) -> Result<Workload> {
        self.workloads
            .get(&id, 0)
            .with_context(|| format!("workload {id} is not configured"))
    }

    /// State of the socket, from its own storage.
    pub(super) fn state(&self, socket: BorrowedFd<'_>) -> io::Result<Option<State>> {
        Ok(sys::storage_get::<u32>(self.states.as_fd(), socket)?.and_then(State::from_raw))
    }

    /// Sets the state of the socket.
    pub(super) fn set_state(&self, socket: BorrowedFd<'_>, state: State) -> io::Result<()> {
        sys::storage_set(self.states.as_fd(), socket, state as u32)
    }

    /// What BPF keeps with the socket.
    pub(super) fn socket(&self, socket: BorrowedFd<'_>) -> io::Result<Option<Socket>> {
        sys::storage_get(self.sockets.as_fd(), socket)
    }

    /// After how many bytes keys are replaced, as configured now; 0: as the cipher demands. What cannot be read is that.
    pub(super) fn rekey_after(&self) -> u64 {
        self.config
            .get(&0, 0)
            .map_or(0, |config| config.rekey_after)
    }

    /// How often the certificates of open connections are verified again, as configured now; `None`: never.
    pub(super) fn recheck(&self) -> Option<Duration> {
        let seconds = self.config.get(&0, 0).map_or(0, |config| config.recheck);
        (seconds != 0).then(|| Duration::from_secs(seconds.into()))
    }

    /// What the keys of the socket have been used for, as limits count.
    pub(super) fn used(&self, socket: BorrowedFd<'_>) -> io::Result<u64> {
        let flow = sys::storage_get::<Flow>(self.flows.as_fd(), socket)?;
        let missing = || io::Error::other("nothing counts what it sends");
        flow.map(|flow| flow.used()).ok_or_else(missing)
    }

    /// Notes that this process may hold the socket while its key is replaced.
    pub(super) fn set_holder(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let limit = sys::storage_get::<KeyLimit>(self.key_limits.as_fd(), socket)?;
        let helper = std::process::id();
        self.set_key_limit(
            socket,
            KeyLimit {
                helper,
                ..limit.unwrap_or_default()
            },
        )
    }

    /// Sets what the key that the socket sends with may be used for.
    pub(super) fn set_key_limit(&self, socket: BorrowedFd<'_>, limit: KeyLimit) -> io::Result<()> {
        sys::storage_create(self.key_limits.as_fd(), socket, limit)
    }

    /// The sockets among the descriptors of process `tgid`.
    pub(super) fn descriptors(&self, tgid: u32) -> io::Result<Vec<TaskFile>> {
        let mut bytes = Vec::new();
        sys::iterate_process(self.task_file.as_fd(), tgid)?.read_to_end(&mut bytes)?;
        Ok(sys::records(&bytes))
    }

    /// The next message, if there is one.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        self.events.next().and_then(|item| sys::record(&item))
    }

    /// How many messages found the ring buffer full so far.
    pub(super) fn lost_events(&self) -> u64 {
        self.counter(Counter::EventLost)
    }

    /// How many ends found a map full so far.
    pub(super) fn full(&self) -> u64 {
        self.counter(Counter::MapFull)
    }

    fn counter(&self, counter: Counter) -> u64 {
        let per_cpu = self.counters.get(&(counter as u32), 0);
        per_cpu.map_or(0, |values| values.iter().map(|tally| tally.packets).sum())
    }

    /// Adds to one of the helper's own counters. Only the helper writes them, and only one runs.
    pub(super) fn count(&mut self, counter: HelperCounter, by: u64) {
        let index = counter as u32;
        let before = self.helper_counters.get(&index, 0).unwrap_or(0);
        // A counter that cannot be written is no reason to stop sealing.
        let _ = self.helper_counters.set(index, before + by, 0);
    }
}

/// A chain as the maps have it, and its key; `None` in the place of one that is too long.
fn pack(chain: &[CertificateDer<'static>]) -> ([u8; 32], Option<Box<Chain>>) {
    let all: Vec<u8> = chain.iter().flat_map(|one| one.iter().copied()).collect();
    let hash = Sha256::digest(&all).into();
    let mut packed = Box::new(Chain {
        len: u32::try_from(all.len()).unwrap_or(u32::MAX),
        reserved: 0,
        der: [0; Chain::MAX_LEN],
    });
    let Some(place) = packed.der.get_mut(..all.len()) else {
        return (hash, None);
    };
    place.copy_from_slice(&all);
    (hash, Some(packed))
}

/// DNS names as the loader has put them together.
fn unpack(value: &DnsNames) -> Vec<String> {
    value.iter().map(|name| text(name).to_owned()).collect()
}

fn path(kind: &str, name: &str) -> PathBuf {
    Path::new(names::PIN_ROOT).join(kind).join(name)
}

fn pinned(name: &str) -> Result<MapData> {
    let path = path(names::MAPS, name);
    MapData::from_pin(&path)
        .with_context(|| format!("cannot open the pinned map {}", path.display()))
}

fn object(kind: &str, name: &str) -> Result<OwnedFd> {
    let path = path(kind, name);
    sys::obj_get(&path).with_context(|| format!("cannot open {}", path.display()))
}
