//! The object file: its maps are created and pinned, its programs pass the verifier and wait to be
//! attached.
//!
//! All programs are loaded before any is attached, so a kernel that refuses one of them leaves the
//! node as it was. aya reuses a pinned map without a look at its shape (aya issue 837): here the
//! shapes are compared first, and the ABI version decides about what is in them.

use std::fmt::Write;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::maps::MapError;
use aya::maps::MapInfo;
use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use underseal_abi::ABI_VERSION;
use underseal_abi::names::{
    ALL_MAPS, ITER_LET_GO, ITER_STRANDED, ITER_TAKE_OVER, ITER_TASK_FILE, ITER_USAGE, MAPS, PROGS,
};

use super::{attach, maps, offsets, pin};
use crate::config::value::Digest;
use crate::controls::Controls;
use crate::kernel::error::Error;

/// Why the object was not loaded. Nothing has been attached or replaced then.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A single operation failed.
    #[error(transparent)]
    Kernel(#[from] Error),
    /// The kernel refused a program.
    #[error("cannot load program {program}: {source}{}", reason(log))]
    Refused {
        /// Its name.
        program: String,
        /// The error number.
        source: io::Error,
        /// What the verifier wrote, whole; empty if it was not asked.
        log: String,
    },
    /// Maps that are pinned do not fit the programs.
    #[error(
        "the pinned maps belong to another version:{0}\n  hint: `underseal down` with the version that made them, then apply"
    )]
    Foreign(String),
    /// The running kernel's structs are not what the programs expect.
    #[error(transparent)]
    Offsets(#[from] offsets::Error),
    /// The object itself is damaged.
    #[error("the embedded BPF object is unusable: {0}")]
    Object(String),
}

impl LoadError {
    /// The verifier's log, if there is one.
    #[must_use]
    pub fn log(&self) -> Option<&str> {
        match self {
            Self::Refused { log, .. } if !log.is_empty() => Some(log),
            _ => None,
        }
    }
}

/// The programs, loaded and not yet attached. They end with this value, except for those that have
/// been attached or pinned.
#[derive(Debug)]
pub struct Loaded {
    ebpf: Ebpf,
}

/// The iterators that are pinned. While this value lives they can be put back.
#[derive(Debug)]
pub struct Iterators(Vec<(&'static str, OwnedFd)>);

impl Iterators {
    /// Those that are pinned now.
    ///
    /// # Errors
    /// A pin cannot be opened.
    pub fn pinned() -> Result<Self, Error> {
        let mut pinned = Vec::new();
        for name in ITERATORS {
            let program = pin::open(&pin::path(PROGS, name))?;
            pinned.extend(program.map(|program| (name, program)));
        }
        Ok(Self(pinned))
    }

    /// Pins them again, in the place of others.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn restore(self) -> Result<(), Error> {
        let mut pinned = self.0.iter();
        pinned
            .try_for_each(|(name, program)| pin::replace(program.as_fd(), &pin::path(PROGS, name)))
    }
}

/// Names the object that is part of this executable: the first 16 bytes of its SHA-256.
#[must_use]
pub fn digest() -> Digest {
    let mut digest = [0; 16];
    for (to, from) in digest.iter_mut().zip(Sha256::digest(crate::OBJECT)) {
        *to = from;
    }
    Digest(digest)
}

impl Loaded {
    /// Creates and pins the maps that are missing, loads every program and pins the iterators. What
    /// is attached stays as it is.
    ///
    /// # Errors
    /// See [`LoadError`]. Maps that were created by then stay; they are empty.
    pub fn load(controls: Controls) -> Result<Self, LoadError> {
        pin::prepare()?;
        check_pinned_maps()?;
        let btf =
            Btf::from_sys_fs().map_err(|error| Error::new("read", BTF, io::Error::other(error)))?;
        let mut loaded = Self {
            ebpf: open(&btf, controls)?,
        };
        for (name, program) in loaded.ebpf.programs_mut() {
            load_program(name, program, &btf)?;
        }
        for name in ITERATORS {
            pin::replace(loaded.program(name)?, &pin::path(PROGS, name))?;
        }
        Ok(loaded)
    }

    /// Names of all programs, in no order, with the number of instructions that the verifier went through for each.
    ///
    /// # Errors
    /// The kernel does not say (before 5.16).
    pub fn verified(&self) -> Result<Vec<(&str, u32)>, Error> {
        let count = |(name, program): (_, &Program)| {
            let fail = |why| Error::new("look at program", name, why);
            let info = program.info().map_err(|e| fail(io::Error::other(e)))?;
            let count = info.verified_instruction_count();
            let count = count.ok_or_else(|| fail(io::ErrorKind::Unsupported.into()))?;
            Ok((name, count))
        };
        self.ebpf.programs().map(count).collect()
    }

    /// The descriptor of a program.
    pub(super) fn program(&self, name: &str) -> Result<BorrowedFd<'_>, Error> {
        let fail = |why: &str| Error::new("find program", name, io::Error::other(why.to_owned()));
        let program = self
            .ebpf
            .program(name)
            .ok_or_else(|| fail("the object has none of this name"))?;
        let fd = match program {
            Program::SockOps(p) => p.fd(),
            Program::CgroupSockAddr(p) => p.fd(),
            Program::CgroupSockopt(p) => p.fd(),
            Program::CgroupSock(p) => p.fd(),
            Program::CgroupSkb(p) => p.fd(),
            Program::Lsm(p) => p.fd(),
            Program::KProbe(p) => p.fd(),
            Program::SchedClassifier(p) => p.fd(),
            Program::Iter(p) => p.fd(),
            _ => return Err(fail("it is of a kind that is not used")),
        };
        Ok(fd.map_err(|error| fail(&error.to_string()))?.as_fd())
    }
}

/// Detaches everything and removes every pin.
///
/// # Errors
/// A filter or a pin cannot be removed.
pub fn unload() -> Result<(), Error> {
    attach::detach_filters()?;
    pin::remove_all()
}

const ITERATORS: [&str; 5] = [
    ITER_TASK_FILE,
    ITER_TAKE_OVER,
    ITER_LET_GO,
    ITER_STRANDED,
    ITER_USAGE,
];
const BTF: &str = "/sys/kernel/btf/vmlinux";
const MODULE_BTF: &str = "/sys/kernel/btf/tls";

fn open(btf: &Btf, controls: Controls) -> Result<Ebpf, LoadError> {
    let types = fs::read(BTF).map_err(|source| Error::new("read", BTF, source))?;
    // Missing when TLS is part of the kernel; the probe before this has had the module loaded.
    let module = fs::read(MODULE_BTF).ok();
    let offsets = offsets::find(&types, module.as_deref())?;
    let bits = controls.bits();
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(btf))
        .verifier_log_level(VerifierLogLevel::DEBUG);
    for (offset, (global, ..)) in offsets.iter().zip(offsets::MEMBERS) {
        loader.override_global(global, offset, true);
    }
    loader.override_global("CONTROLS", &bits, true);
    for (name, room) in controls.rooms() {
        loader.map_max_entries(name, room);
    }
    for name in ALL_MAPS {
        loader.map_pin_path(name, pin::path(MAPS, name));
    }
    loader.load(crate::OBJECT).map_err(|error| match error {
        EbpfError::MapError(MapError::CreateError { name, io_error, .. }) => {
            Error::new("create map", name, io_error).into()
        }
        EbpfError::MapError(error) => Error::new("create", "the maps", maps::reason(error)).into(),
        error => LoadError::Object(error.to_string()),
    })
}

fn load_program(name: &str, program: &mut Program, btf: &Btf) -> Result<(), LoadError> {
    let result = match program {
        Program::SockOps(p) => p.load(),
        Program::CgroupSockAddr(p) => p.load(),
        Program::CgroupSockopt(p) => p.load(),
        Program::CgroupSock(p) => p.load(),
        Program::CgroupSkb(p) => p.load(),
        // The program is called like the hook.
        Program::Lsm(p) => p.load(name, btf),
        Program::KProbe(p) => p.load(),
        Program::SchedClassifier(p) => p.load(),
        Program::Iter(p) => p.load(
            if name == ITER_TASK_FILE {
                "task_file"
            } else {
                "tcp"
            },
            btf,
        ),
        _ => {
            return Err(LoadError::Object(format!(
                "{name} is of a kind that is not used"
            )));
        }
    };
    result.map_err(|error| match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => LoadError::Refused {
            program: name.to_owned(),
            source: io_error,
            log: verifier_log.to_string(),
        },
        error => {
            let source = io::Error::other(error);
            LoadError::Refused {
                program: name.to_owned(),
                source,
                log: String::new(),
            }
        }
    })
}

/// The last thing the verifier said, as the end of a sentence.
fn reason(log: &str) -> String {
    // A log ends with statistics; what was wrong stands before them.
    let last = log
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with("processed "));
    last.map(|line| format!(" ({line})")).unwrap_or_default()
}

/// Compares every pinned map with the object and names all that differ.
fn check_pinned_maps() -> Result<(), LoadError> {
    let object = aya_obj::Object::parse(crate::OBJECT)
        .map_err(|error| LoadError::Object(error.to_string()))?;
    let mut differences = String::new();
    for name in ALL_MAPS {
        let path = pin::path(MAPS, name);
        let wanted = object
            .maps
            .get(name)
            .ok_or_else(|| LoadError::Object(format!("it has no map {name}")))?;
        if pin::open(&path)?.is_none() {
            continue;
        }
        let found = MapInfo::from_pin(&path)
            .map_err(|error| Error::new("look at map", name, maps::reason(error)))?;
        let kind = found.map_type().map_or(0, |kind| kind as u32);
        for (what, found, wanted) in [
            ("type", kind, wanted.map_type()),
            ("key size", found.key_size(), wanted.key_size()),
            ("value size", found.value_size(), wanted.value_size()),
            (
                "number of entries",
                found.max_entries(),
                wanted.max_entries(),
            ),
            ("flags", found.map_flags(), wanted.map_flags()),
        ] {
            if found != wanted {
                // Writing to a String does not fail.
                let _ = write!(differences, "\n  {name}: {what} {found}, expected {wanted}");
            }
        }
    }
    let abi = if differences.is_empty() {
        maps::config()?.map_or(0, |config| config.abi)
    } else {
        0
    };
    // Zero: the maps were made, and nobody came to write into them.
    if abi != 0 && abi != ABI_VERSION {
        let _ = write!(differences, "\n  ABI version {abi}, expected {ABI_VERSION}");
    }
    if differences.is_empty() {
        Ok(())
    } else {
        Err(LoadError::Foreign(differences))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_ends_with_what_was_wrong() {
        let log = "0: R1=ctx()\n1: (79) r1 = *(u64 *)(r1 +8)\ninvalid bpf_context access off=8\nprocessed 2 insns\n\n";
        assert_eq!(reason(log), " (invalid bpf_context access off=8)");
        assert_eq!(reason(""), "");
    }

    #[test]
    fn every_attached_program_is_in_the_object() {
        let object = aya_obj::Object::parse(crate::OBJECT).unwrap();
        for (_, name, _) in crate::state::Program::ALL {
            assert!(object.programs.contains_key(*name), "{name}");
        }
        for name in ALL_MAPS {
            assert!(object.maps.contains_key(name), "{name}");
        }
    }
}
