//! A connection for the tests of this folder.

use underseal_abi::{Conn, Role, Tuple};

/// Address of the client.
pub(super) const CLIENT: [u8; 16] = [1; 16];
/// Address of the server.
pub(super) const SERVER: [u8; 16] = [2; 16];

/// One end of it, whose cookie is the role's number. What else it should have is the caller's to say. The client's socket is
/// an IPv6 one, and the server's is not: that is each end's own affair.
pub(super) fn end(role: Role) -> Conn {
    let client = Tuple {
        local: CLIENT,
        remote: SERVER,
        local_port: 40000,
        remote_port: 80,
        v6: 1,
    };
    Conn {
        cookie: role as u64,
        tuple: match role {
            Role::Client => client,
            Role::Server => Tuple {
                v6: 0,
                ..client.reversed()
            },
        },
        role: role as u32,
        ..Conn::default()
    }
}
