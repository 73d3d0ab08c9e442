//! Leave for aya to copy the layouts into and out of maps.
#![allow(unsafe_code)]

use aya::Pod;

use crate::{
    Bundle, Chain, Config, Conn, DnsNames, Endpoint, Event, Flow, Grant, KeyLimit, Named, Netns,
    Node, PeerWorkload, Reply, Seal, Sleeper, Socket, Subject, SubjectKey, Tally, TaskFile, Usage,
    Workload,
};

macro_rules! pod {
    ($($layout:ty),*) => {
        $(
            // SAFETY: `repr(C)`, integers and arrays of them only, no padding (each struct's size
            // is asserted beside it to be the sum of its members).
            unsafe impl Pod for $layout {}
        )*
    };
}

pod!(
    Bundle,
    Chain,
    Config,
    Conn,
    DnsNames,
    Endpoint,
    Event,
    Flow,
    Grant,
    KeyLimit,
    Named,
    Netns,
    Node,
    PeerWorkload,
    Reply,
    Seal,
    Sleeper,
    Socket,
    Subject,
    SubjectKey,
    Tally,
    TaskFile,
    Usage,
    Workload
);
