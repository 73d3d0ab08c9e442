//! Workloads and connections, as people read them.

use std::{fmt, net::Ipv6Addr};

use underseal_abi::Conn;

/// The text in a field of a map, which is padded with zeros. The loader writes UTF-8 only.
pub(super) fn text(field: &[u8]) -> &str {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).unwrap_or_default()
}

/// `10.1.0.10:40000 -> 10.1.0.11:80`, from the client to the server.
pub(super) struct Route<'a>(pub(super) &'a Conn);

impl fmt::Display for Route<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = self.0;
        let t = if c.role == underseal_abi::Role::Server as u32 {
            c.tuple.reversed()
        } else {
            c.tuple
        };
        let ip = |ip: [u8; 16]| Ipv6Addr::from(ip).to_canonical();
        let local = std::net::SocketAddr::new(ip(t.local), t.local_port);
        let remote = std::net::SocketAddr::new(ip(t.remote), t.remote_port);
        write!(f, "{local} -> {remote}")
    }
}
