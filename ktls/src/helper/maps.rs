//! The pinned maps, as the helper uses them.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf};
use underseal_abi::{
    ABI_VERSION, Config, Conn, Counter, Event, HelperCounter, Sleeper, Socket, State, Tally,
    TaskFile, Workload, names,
};

use super::sys;

/// `BPF_EXIST`: an element that BPF has removed meanwhile is not brought back.
const ONLY_IF_THERE: u64 = 2;

/// All of them, open.
pub(super) struct Maps {
    conns: HashMap<MapData, u64, Conn>,
    sleepers: HashMap<MapData, Sleeper, u64>,
    workloads: HashMap<MapData, u32, Workload>,
    counters: PerCpuArray<MapData, Tally>,
    helper_counters: Array<MapData, u64>,
    states: OwnedFd,
    sockets: OwnedFd,
    task_file: OwnedFd,
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
            conns: HashMap::try_from(Map::HashMap(pinned(names::CONNS)?))?,
            sleepers: HashMap::try_from(Map::HashMap(pinned(names::SLEEPERS)?))?,
            workloads: HashMap::try_from(Map::HashMap(pinned(names::WORKLOADS)?))?,
            counters: PerCpuArray::try_from(Map::PerCpuArray(pinned(names::COUNTERS)?))?,
            helper_counters: Array::try_from(Map::Array(pinned(names::HELPER_COUNTERS)?))?,
            states: object(names::MAPS, names::STATES)?,
            sockets: object(names::MAPS, names::SOCKETS)?,
            task_file: object(names::PROGS, names::ITER_TASK_FILE)?,
            events: RingBuf::try_from(Map::RingBuf(pinned(names::EVENTS)?))?,
        })
    }

    /// Every connection that is or shall be sealed.
    pub(super) fn conns(&self) -> Vec<Conn> {
        // An element removed while the table is read ends the walk early (the kernel starts over
        // or fails); whatever was missed comes again as an event or at the next scan.
        self.conns
            .iter()
            .filter_map(|entry| entry.ok().map(|(_, conn)| conn))
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
    pub(super) fn sleepers(&self, cookies: &[u64]) -> Vec<Sleeper> {
        let on_these = |s: &Sleeper| cookies.binary_search(&s.cookie).is_ok();
        self.sleepers
            .keys()
            .filter_map(Result::ok)
            .filter(on_these)
            .collect()
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

    /// The descriptor numbers under which process `tgid` has the socket `cookie`.
    pub(super) fn descriptors(&self, tgid: u32, cookie: u64) -> io::Result<Vec<u32>> {
        let mut reader: File = sys::iterate_process(self.task_file.as_fd(), tgid)?;
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        let records = bytes
            .chunks_exact(size_of::<TaskFile>())
            .filter_map(sys::record::<TaskFile>);
        Ok(records
            .filter(|r| r.cookie == cookie)
            .map(|r| r.fd)
            .collect())
    }

    /// The next message, if there is one.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        self.events.next().and_then(|item| sys::record(&item))
    }

    /// How many messages found the ring buffer full so far.
    pub(super) fn lost_events(&self) -> u64 {
        let per_cpu = self.counters.get(&(Counter::EventLost as u32), 0);
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
