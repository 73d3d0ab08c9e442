//! Programs on network interfaces of kernels without tcx (before 6.6): a direct-action filter in
//! the `clsact` qdisc.
//!
//! A filter has no link that could be pinned. Priority and handle say that it is ours; the pin of
//! the program, which [`super::attach`] makes first, says that there may be one.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use nix::errno::Errno;

use crate::kernel::error::Error;
use crate::kernel::link::Link;
use crate::kernel::netlink::{self, Refused};
use crate::state::{Hook, Program};

/// Adds the qdisc; false if there was one.
pub(super) fn add_qdisc(interface: &Link) -> Result<bool, Error> {
    match netlink::request(
        RouteNetlinkMessage::NewQueueDiscipline(qdisc(interface)),
        NLM_F_CREATE | NLM_F_EXCL,
    ) {
        Ok(_) => Ok(true),
        Err(refused) if refused.is(Errno::EEXIST) => Ok(false),
        Err(refused) => Err(refused.on("add the clsact qdisc to", &interface.name)),
    }
}

/// Removes the qdisc unless somebody has put a filter into it; false if it stays.
pub(super) fn remove_empty_qdisc(interface: &Link) -> Result<bool, Error> {
    for hook in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
        let filters = netlink::dump(&RouteNetlinkMessage::GetTrafficFilter(parent(
            interface, hook,
        )));
        // What cannot be read is somebody's.
        if filters.map_or(true, |filters| !filters.is_empty()) {
            return Ok(false);
        }
    }
    match netlink::request(RouteNetlinkMessage::DelQueueDiscipline(qdisc(interface)), 0) {
        Err(refused) if !is_absent(&refused) => {
            Err(refused.on("remove the clsact qdisc from", &interface.name))
        }
        _ => Ok(true),
    }
}

/// Attaches a program in front of all other filters, in its own place if it is there already.
pub(super) fn attach(interface: &Link, program: Program, fd: BorrowedFd<'_>) -> Result<(), Error> {
    let mut message = filter(interface, program);
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(fd.as_raw_fd().unsigned_abs())),
        TcOption::Bpf(TcFilterBpfOption::ProgName(program.to_string())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    netlink::request(
        RouteNetlinkMessage::NewTrafficFilter(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
    .map(drop)
    .map_err(|refused| {
        refused.on(
            "attach",
            format!("{program} to {} (clsact)", interface.name),
        )
    })
}

/// Id of what is attached as `program`; `None` if there is no such filter.
pub(super) fn attached(interface: &Link, program: Program) -> Result<Option<u32>, Error> {
    let answer = match netlink::request(
        RouteNetlinkMessage::GetTrafficFilter(filter(interface, program)),
        0,
    ) {
        Ok(answer) => answer,
        Err(refused) if is_absent(&refused) => return Ok(None),
        Err(refused) => return Err(refused.on("look at the filters of", &interface.name)),
    };
    Ok(answer.into_iter().find_map(|message| match message {
        RouteNetlinkMessage::NewTrafficFilter(message) => program_of(&message),
        _ => None,
    }))
}

/// Removes our filter if it is there.
pub(super) fn detach(interface: &Link, program: Program) -> Result<(), Error> {
    match netlink::request(
        RouteNetlinkMessage::DelTrafficFilter(filter(interface, program)),
        0,
    ) {
        Err(refused) if !is_absent(&refused) => {
            Err(refused.on("detach the filter from", &interface.name))
        }
        _ => Ok(()),
    }
}

/// In front of all others: a filter with a smaller number that accepts a packet would end the walk.
const PRIORITY: u32 = 1;
/// `ETH_P_ALL`, in network order as the header wants it.
const ANY_PROTOCOL: u16 = 3_u16.to_be();

/// Tells our filters from others of the same priority. Never changes: a later version must find
/// what an earlier one has attached.
const fn handle(program: Program) -> u32 {
    0x5ea1_0000
        | match program {
            Program::FromWorkload => 1,
            Program::ToWorkload => 2,
            Program::FromWireguard => 3,
            Program::UplinkEgress => 4,
            Program::UplinkIngress => 5,
            _ => 0,
        }
}

fn qdisc(interface: &Link) -> TcMessage {
    let mut message = TcMessage::with_index(index(interface));
    message.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    message.header.parent = TcHandle::CLSACT;
    message
        .attributes
        .push(TcAttribute::Kind("clsact".to_owned()));
    message
}

/// A message about filters of one direction: `TcHandle::MIN_INGRESS` or `MIN_EGRESS`.
fn parent(interface: &Link, hook: u16) -> TcMessage {
    let mut message = TcMessage::with_index(index(interface));
    message.header.parent = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: hook,
    };
    message
}

fn filter(interface: &Link, program: Program) -> TcMessage {
    let hook = match program.hook() {
        Hook::Egress => TcHandle::MIN_EGRESS,
        _ => TcHandle::MIN_INGRESS,
    };
    let mut message = parent(interface, hook);
    message.header.handle = handle(program).into();
    message.header.info = PRIORITY << 16 | u32::from(ANY_PROTOCOL);
    message
        .attributes
        .push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    message
}

fn program_of(message: &TcMessage) -> Option<u32> {
    let options = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })?;
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    })
}

/// How the kernel says that there is no such filter, no qdisc to hold it, or no such interface
/// (`tc_get_tfilter`, net/sched/cls_api.c).
fn is_absent(refused: &Refused) -> bool {
    [Errno::ENOENT, Errno::EINVAL, Errno::ENODEV]
        .into_iter()
        .any(|errno| refused.is(errno))
}

const fn index(interface: &Link) -> i32 {
    interface.index.cast_signed()
}
