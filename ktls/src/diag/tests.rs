//! Layouts against bytes written by hand, and the real thing on this machine's loopback interface.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};

use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{BindToDevice, TcpTlsRx, TcpTlsTx, TcpUlp, TlsCryptoInfo};

use super::*;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(align(bytes.len()), 0);
    bytes
}

fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(NETLINK_HEADER + payload.len()).unwrap();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.resize(NETLINK_HEADER, 0);
    bytes.extend_from_slice(payload);
    bytes.resize(align(bytes.len()), 0);
    bytes
}

/// An established connection 10.1.0.10:40000 -> 10.1.0.11:6379 with cookie 0x1_0000_0002.
fn inet_diag_msg() -> Vec<u8> {
    let mut bytes = vec![2, 1, 0, 0, 0x9c, 0x40, 0x18, 0xeb];
    for address in [[10, 1, 0, 10], [10, 1, 0, 11]] {
        bytes.extend_from_slice(&address);
        bytes.extend_from_slice(&[0; 12]);
    }
    for number in [0_u32, 2, 1, 0, 0, 0, 1000, 4711] {
        bytes.extend_from_slice(&number.to_ne_bytes());
    }
    assert_eq!(bytes.len(), INET_DIAG_MSG);
    bytes
}

fn ulp_info(tls: &[(u16, u16)]) -> Vec<u8> {
    let tls: Vec<u8> = tls
        .iter()
        .flat_map(|(kind, value)| attribute(*kind, &value.to_ne_bytes()))
        .collect();
    let nested = [
        attribute(INET_ULP_INFO_NAME, b"tls\0"),
        attribute(INET_ULP_INFO_TLS | 0x8000, &tls),
    ]
    .concat();
    attribute(INET_DIAG_ULP_INFO | 0x8000, &nested)
}

#[test]
fn socket_is_read_field_by_field() {
    let socket = tcp_socket(&inet_diag_msg()).unwrap();
    assert_eq!(socket.tuple.local, "10.1.0.10:40000".parse().unwrap());
    assert_eq!(socket.tuple.remote, "10.1.0.11:6379".parse().unwrap());
    assert_eq!(socket.state, State::Established);
    assert_eq!(
        (socket.cookie, socket.uid, socket.inode, socket.interface),
        (0x1_0000_0002, 1000, 4711, 0)
    );
    assert_eq!(socket.ulp, None);
}

#[test]
fn ulp_is_found_behind_other_attributes() {
    let info = ulp_info(&[(1, 0x0304), (2, 51), (3, 2), (4, 2)]);
    let payload = [
        inet_diag_msg(),
        attribute(INET_DIAG_INFO.into(), &[0; 240]),
        info,
    ]
    .concat();
    let ulp = tcp_socket(&payload).unwrap().ulp.unwrap();
    assert_eq!(ulp.name, "tls");
    let tls = ulp.tls.unwrap();
    assert_eq!((tls.version, tls.cipher), (Some(0x0304), Some(51)));
    assert!(tls.is_sealed());
}

#[test]
fn tls_without_keys_is_not_sealed() {
    for confs in [
        &[(3, 1), (4, 1)][..],
        &[(3, 2), (4, 1)],
        &[(3, 1), (4, 2)],
        &[],
    ] {
        let payload = [inet_diag_msg(), ulp_info(confs)].concat();
        let tls = tcp_socket(&payload).unwrap().ulp.unwrap().tls.unwrap();
        assert!(!tls.is_sealed(), "{tls:?}");
        assert_eq!(tls.version, None);
    }
}

#[test]
fn every_state_has_its_bit() {
    assert_eq!(ALL_STATES, 0b1_1111_1111_1110);
    assert_eq!(state(10), Some(State::Listen));
    assert_eq!(state(12), Some(State::NewSynReceived));
    assert_eq!((state(0), state(13)), (None, None));
}

#[test]
fn answer_is_taken_apart_message_by_message() {
    let bytes = [
        message(SOCK_DIAG_BY_FAMILY, &inet_diag_msg()),
        message(NLMSG_DONE, &[]),
    ]
    .concat();
    let (first, rest) = split_message(&bytes).unwrap();
    assert!(matches!(first, Message::Socket(_)));
    let (second, rest) = split_message(rest).unwrap();
    assert_eq!((second, rest.len()), (Message::End(0), 0));
    let refusal = message(NLMSG_ERROR, &(-libc::EPERM).to_ne_bytes());
    assert_eq!(
        split_message(&refusal).unwrap().0,
        Message::End(-libc::EPERM)
    );
}

#[test]
fn cut_messages_are_errors_and_never_panics() {
    let whole = message(
        SOCK_DIAG_BY_FAMILY,
        &[inet_diag_msg(), ulp_info(&[(3, 2)])].concat(),
    );
    for length in 0..whole.len() {
        assert!(split_message(&whole[..length]).is_err(), "{length}");
        // Cut, but with a header that says so.
        let mut cut = whole[..length].to_vec();
        if length >= 4 {
            cut[..4].copy_from_slice(&u32::try_from(length).unwrap().to_ne_bytes());
            let _ = split_message(&cut);
        }
    }
    // A length below the header's would never advance.
    assert!(split_message(&[0; 16]).is_err());
    assert_eq!(find(&[0; 8], 7), None);
}

#[test]
fn addresses_of_two_families_are_refused() {
    let tuple = Tuple {
        local: "10.0.0.1:1".parse().unwrap(),
        remote: "[fd00::1]:2".parse().unwrap(),
    };
    assert_eq!(
        destroy(tuple, 1).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
}

/// A connection over loopback: listener address, address the client connects to.
fn connection(listen: &str, connect: IpAddr) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(listen).unwrap();
    let client = TcpStream::connect((connect, listener.local_addr().unwrap().port())).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

fn tuple(stream: &TcpStream) -> Tuple {
    let canonical =
        |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    Tuple {
        local: canonical(stream.local_addr().unwrap()),
        remote: canonical(stream.peer_addr().unwrap()),
    }
}

fn listed(tuple: Tuple) -> Option<TcpSocket> {
    list()
        .unwrap()
        .into_iter()
        .find(|socket| socket.tuple == tuple)
}

fn ends_at_once((mut client, mut server): (TcpStream, TcpStream)) {
    let tuple = tuple(&server);
    let socket = listed(tuple).unwrap();
    assert_eq!(socket.state, State::Established);
    assert!(
        !destroy(tuple, socket.cookie + (1 << 40)).unwrap(),
        "destroyed by a wrong cookie"
    );
    client.write_all(b"still open").unwrap();
    server.read_exact(&mut [0; 10]).unwrap();

    assert!(destroy(tuple, socket.cookie).unwrap());
    assert_eq!(
        server.read(&mut [0]).unwrap_err().kind(),
        io::ErrorKind::ConnectionAborted
    );
    assert_eq!(
        client.read(&mut [0]).unwrap_err().kind(),
        io::ErrorKind::ConnectionReset
    );
    assert!(!destroy(tuple, socket.cookie).unwrap(), "destroyed twice");
}

#[test]
fn destroys_ipv4() {
    ends_at_once(connection("127.0.0.1:0", Ipv4Addr::LOCALHOST.into()));
}

#[test]
fn destroys_ipv6() {
    ends_at_once(connection("[::1]:0", Ipv6Addr::LOCALHOST.into()));
}

#[test]
fn destroys_ipv4_mapped_into_ipv6() {
    // The server's socket is IPv6, its addresses are IPv4.
    ends_at_once(connection("[::]:0", Ipv4Addr::LOCALHOST.into()));
}

#[test]
fn destroys_a_socket_bound_to_an_interface() {
    let (client, server) = connection("127.0.0.1:0", Ipv4Addr::LOCALHOST.into());
    setsockopt(&server, BindToDevice, &"lo".into()).unwrap();
    assert_ne!(listed(tuple(&server)).unwrap().interface, 0);
    ends_at_once((client, server));
}

#[test]
fn by_addresses_a_connection_is_destroyed_and_a_listener_never() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let _client = TcpStream::connect(address).unwrap();
    let (server, _) = listener.accept().unwrap();
    let tuple = tuple(&server);
    assert!(destroy_connection(tuple).unwrap());
    drop(server);
    assert!(!destroy_connection(tuple).unwrap(), "it was gone");
    TcpStream::connect(address).expect("the listener lives on");
}

#[test]
fn listening_sockets_are_listed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = listener.local_addr().unwrap();
    let found = list()
        .unwrap()
        .into_iter()
        .find(|socket| socket.tuple.local == local)
        .unwrap();
    assert_eq!(found.state, State::Listen);
    assert_ne!(found.inode, 0);
}

#[test]
fn probe_agrees() {
    probe().unwrap();
}

/// On a kernel with TLS each step of a seal is seen; on one without there is nothing to see.
#[test]
fn tls_is_seen_as_it_gets_its_keys() {
    let (client, _server) = connection("127.0.0.1:0", Ipv4Addr::LOCALHOST.into());
    let ulp = || listed(tuple(&client)).unwrap().ulp;
    assert_eq!(ulp(), None);
    match setsockopt(&client, TcpUlp::default(), b"tls") {
        Err(Errno::ENOENT) => return assert_eq!(ulp(), None),
        other => other.unwrap(),
    }
    let seen = ulp().unwrap();
    assert_eq!(seen.name, "tls");
    let tls = seen.tls.unwrap();
    assert_eq!((tls.version, tls.cipher), (None, None));
    assert_eq!(
        (tls.send, tls.receive),
        (Direction::Plain, Direction::Plain)
    );

    let info = libc::tls_crypto_info {
        version: libc::TLS_1_3_VERSION,
        cipher_type: libc::TLS_CIPHER_AES_GCM_128,
    };
    let keys = TlsCryptoInfo::Aes128Gcm(libc::tls12_crypto_info_aes_gcm_128 {
        info,
        iv: [1; 8],
        key: [2; 16],
        salt: [3; 4],
        rec_seq: [0; 8],
    });
    setsockopt(&client, TcpTlsTx, &keys).unwrap();
    let tls = ulp().unwrap().tls.unwrap();
    assert_eq!((tls.version, tls.cipher), (Some(0x0304), Some(51)));
    assert_eq!(
        (tls.send, tls.receive),
        (Direction::Software, Direction::Plain)
    );
    assert!(!tls.is_sealed());
    setsockopt(&client, TcpTlsRx, &keys).unwrap();
    assert!(ulp().unwrap().tls.unwrap().is_sealed());
}
