//! The list of cases.

use anyhow::Result;

use crate::end::{End, Role, Timing};
use crate::{endings, options, ready, refused, transfer};

/// Which addresses the connection is made over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
    /// IPv4 at IPv6 sockets, both ends.
    Mapped,
}

impl Family {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::Mapped => "mapped",
        }
    }
}

/// One thing that programs do.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) families: &'static [Family],
    pub(crate) timings: &'static [Timing],
    #[expect(clippy::type_complexity, reason = "one field, spelled out once")]
    pub(crate) run: Box<dyn Fn(&mut End) -> Result<String>>,
}

const BOTH: &[Family] = &[Family::V4, Family::V6];
const EACH: &[Family] = &[Family::V4, Family::V6, Family::Mapped];
const V4: &[Family] = &[Family::V4];
const ANY_TIME: &[Timing] = &[Timing::Before, Timing::After];
const BEFORE: &[Timing] = &[Timing::Before];
const AFTER: &[Timing] = &[Timing::After];
const LATE: &[Timing] = &[Timing::Late];

/// All of them, in the order in which they are played.
pub(crate) fn all() -> Vec<Case> {
    let mut all = Vec::new();
    for way in transfer::WAYS {
        let families = if way.name == "read_write" { EACH } else { BOTH };
        all.push(case(way.name, families, ANY_TIME, |end| {
            transfer::run(end, way)
        }));
    }
    for way in ready::WAYS {
        all.push(case(way.name, BOTH, ANY_TIME, |end| ready::run(end, way)));
    }
    all.extend([
        case("first_try", BOTH, ANY_TIME, ready::first_try),
        case("fionread", V4, AFTER, options::fionread),
        case("rcvlowat_poll", V4, AFTER, options::rcvlowat_poll),
        case("timeouts", BOTH, ANY_TIME, options::timeouts),
        case("timeouts_expire", V4, BEFORE, options::timeouts_expire),
        case("options", BOTH, ANY_TIME, options::own_options),
        case("lowat_zero", V4, ANY_TIME, options::lowat_zero),
        case("server_first", BOTH, ANY_TIME, |end| {
            transfer::server_first(end, way("read_write"))
        }),
        case("accept_late", BOTH, LATE, transfer::accept_late),
        case("accept_never", BOTH, LATE, endings::accept_never),
        case("sendfile_first", BOTH, AFTER, |end| {
            transfer::server_first(end, way("sendfile_splice"))
        }),
        case("sendfile_beyond", V4, AFTER, transfer::sendfile_beyond),
    ]);
    all.extend(endings());
    all.extend([
        case("more_close", V4, AFTER, refused::more_close),
        case("more_shutdown", V4, AFTER, refused::more_shutdown),
        case("more_then_rest", V4, AFTER, refused::more_then_rest),
        case(
            "send_after_shutdown",
            V4,
            ANY_TIME,
            refused::send_after_shutdown,
        ),
        case("send_after_reset", V4, AFTER, refused::send_after_reset),
        case("flags", V4, AFTER, refused::flags),
    ]);
    all
}

fn endings() -> Vec<Case> {
    use Role::{Client, Server};
    vec![
        case("half_close", BOTH, ANY_TIME, |end| {
            endings::half_close(end, Client)
        }),
        case("half_close_server", BOTH, ANY_TIME, |end| {
            endings::half_close(end, Server)
        }),
        case("shutdown_first", BOTH, BEFORE, |end| {
            endings::shutdown_first(end, Client, 1000)
        }),
        case("shutdown_first_server", V4, BEFORE, |end| {
            endings::shutdown_first(end, Server, 1000)
        }),
        case("shutdown_first_quiet", BOTH, BEFORE, |end| {
            endings::shutdown_first(end, Client, 0)
        }),
        case(
            "shutdown_first_found",
            BOTH,
            LATE,
            endings::shutdown_first_found,
        ),
        case("close_at_once", BOTH, ANY_TIME, |end| {
            endings::close_at_once(end, Client)
        }),
        case("close_at_once_server", BOTH, ANY_TIME, |end| {
            endings::close_at_once(end, Server)
        }),
        case("close_unaccepted", V4, LATE, endings::close_unaccepted),
        case("close_full", V4, AFTER, endings::close_full),
        case("close_sent", BOTH, AFTER, endings::close_sent),
        case("reset", BOTH, ANY_TIME, |end| endings::reset(end, Client)),
        case("reset_server", V4, ANY_TIME, |end| {
            endings::reset(end, Server)
        }),
    ]
}

fn case(
    name: &'static str,
    families: &'static [Family],
    timings: &'static [Timing],
    run: impl Fn(&mut End) -> Result<String> + 'static,
) -> Case {
    Case {
        name,
        families,
        timings,
        run: Box::new(run),
    }
}

/// The way with this name.
fn way(name: &str) -> &'static transfer::Way {
    let mut ways = transfer::WAYS.iter();
    ways.find(|way| way.name == name).expect("one of the ways")
}

/// The timing with this name.
pub(crate) fn timing(name: &str) -> Option<Timing> {
    [Timing::Before, Timing::After, Timing::Late]
        .into_iter()
        .find(|timing| format!("{timing:?}") == name)
}
