//! What the table does with ends in any order.

use underseal_abi::Tuple;

use super::*;
use crate::helper::testing::end;

fn conn(cookie: u64, role: Role, tgid: u32) -> Conn {
    Conn {
        cookie,
        tgid,
        ..end(role)
    }
}

#[test]
fn a_pair_is_ready_when_both_sockets_are_there_in_any_order() {
    for server_first in [false, true] {
        let (mut table, now) = (Table::new(), Instant::now());
        let (client, server) = (conn(1, Role::Client, 10), conn(2, Role::Server, 0));
        table.note(client, now);
        table.note(server, now);
        assert_eq!(table.due(now, 9), [client], "the server has not accepted");
        let accepted = conn(2, Role::Server, 20);
        table.note(accepted, now);
        let mut order = [(1, "client"), (2, "server")];
        if server_first {
            order.reverse();
        }
        for (cookie, socket) in order {
            assert!(table.take_ready(&client).is_none());
            table.found(cookie, socket, 9);
        }
        let pair = table.take_ready(&client).unwrap();
        assert_eq!((pair.client.1, pair.server.1), ("client", "server"));
        assert_eq!((table.len(), table.by_key.len()), (0, 0));
    }
}

#[test]
fn a_missing_socket_is_looked_for_ever_more_rarely_and_then_lost() {
    let (mut table, start) = (Table::<()>::new(), Instant::now());
    table.note(conn(1, Role::Client, 10), start);
    let mut now = start;
    let mut tries = 0;
    while table.missing(1, now) == Missing::Retry {
        now += table.next_due(now).unwrap();
        tries += 1;
        assert!(tries < 20);
    }
    assert!(
        now - start >= GIVE_UP && now - start < GIVE_UP * 2,
        "{tries} tries, {:?}",
        now - start
    );
}

#[test]
fn forgetting_one_end_leaves_the_other() {
    let (mut table, now) = (Table::<()>::new(), Instant::now());
    let (client, server) = (conn(1, Role::Client, 10), conn(2, Role::Server, 20));
    table.note(client, now);
    table.note(server, now);
    assert_eq!(table.other_end(&client), Some(server));
    assert_eq!(table.forget(1), Some((client, None)));
    assert_eq!(table.other_end(&server), None);
    assert_eq!(table.forget(2), Some((server, None)));
    assert!(table.by_key.is_empty());
}

#[test]
fn a_search_begins_with_the_first_look() {
    let (mut table, start) = (Table::<()>::new(), Instant::now());
    table.note(conn(1, Role::Client, 10), start);
    let late = start + GIVE_UP * 3;
    assert_eq!(table.missing(1, late), Missing::Retry);
    assert_eq!(table.missing(1, late + GIVE_UP), Missing::Lost);
}

#[test]
fn a_socket_put_aside_is_looked_for_when_the_server_accepts() {
    let (mut table, now) = (Table::new(), Instant::now());
    let client = conn(1, Role::Client, 10);
    table.note(client, now);
    table.note(conn(2, Role::Server, 0), now);
    table.found(1, (), 0);
    assert_eq!((table.in_hand(), table.due(now, 9)), (0, vec![]));
    let accepted = conn(2, Role::Server, 20);
    table.note(accepted, now);
    assert_eq!(table.due(now, 1), [client], "in order");
    assert_eq!(table.due(now, 9).len(), 2);
    table.found(1, (), 0);
    table.found(2, (), 0);
    assert_eq!(table.in_hand(), 2);
    assert!(table.take_ready(&client).is_some());
    assert_eq!(table.in_hand(), 0);
}

#[test]
fn an_end_without_the_other_is_given_up_in_time() {
    let (mut table, now) = (Table::<()>::new(), Instant::now());
    let (client, server) = (conn(1, Role::Client, 10), conn(2, Role::Server, 0));
    table.note(client, now);
    assert!(table.lonely(now + SERVER_COMES / 2).is_empty());
    assert_eq!(table.lonely(now + SERVER_COMES), [client]);
    table.note(server, now);
    assert!(table.lonely(now + SERVER_COMES * 2).is_empty());
    assert!(table.closed(1, now) && !table.closed(1, now));
    assert!(table.lonely(now).is_empty());
    assert_eq!(table.lonely(now + GIVE_UP), [server]);
    table.forget(2);
    table.note(server, now);
    assert_eq!(table.lonely(now + GIVE_UP), [server], "no client at all");
    table.retain(now, |cookie| cookie != 2);
    assert_eq!((table.len(), table.by_key.len()), (0, 0));
}

#[test]
fn a_port_used_again_belongs_to_the_younger_end() {
    let (mut table, now) = (Table::<()>::new(), Instant::now());
    table.note(conn(1, Role::Client, 10), now);
    let younger = conn(3, Role::Client, 10);
    table.note(younger, now);
    table.closed(1, now);
    let server = conn(2, Role::Server, 0);
    table.note(server, now);
    assert_eq!(table.other_end(&server), Some(younger));
}

#[test]
fn a_socket_that_connects_again_leaves_its_old_connection() {
    let (mut table, now) = (Table::new(), Instant::now());
    let (old, server) = (conn(1, Role::Client, 10), conn(2, Role::Server, 20));
    table.note(old, now);
    table.note(server, now);
    table.found(1, (), 9);
    let mut again = old;
    again.tuple.local_port += 1;
    table.note(again, now);
    assert_eq!((table.other_end(&server), table.in_hand()), (None, 0));
    assert_eq!(table.lonely(now + GIVE_UP), [server]);
    assert!(table.due(now, 9).contains(&again));
    table.closed(1, now);
    table.closed(2, now);
    assert_eq!((table.len(), table.by_key.len()), (0, 0));
}

#[test]
fn when_there_is_little_room_every_pair_of_workloads_has_its_share() {
    let (mut table, now) = (Table::<()>::new(), Instant::now());
    let end = |cookie: u64, role, workload, peer| Conn {
        workload,
        peer,
        tuple: Tuple {
            local: [1; 16],
            remote: [1; 16],
            ..Tuple::default()
        },
        ..conn(cookie, role, 10)
    };
    for n in 0..100 {
        let mut client = end(2 * n, Role::Client, 1, 2);
        client.tuple.local_port = u16::try_from(n).unwrap();
        table.note(client, now);
    }
    let mut other = end(1001, Role::Server, 4, 3);
    other.tuple.local_port = 7000;
    table.note(other, now);
    let due = table.due(now, 3);
    assert!(due.len() == 3 && due.contains(&other), "{due:?}");
    assert_eq!(table.due(now, 1000).len(), 101);
}

#[test]
fn one_that_ends_in_order_is_not_lonely() {
    let (mut table, now) = (Table::<()>::new(), Instant::now());
    let ending = Conn {
        state: State::Ending as u32,
        ..conn(2, Role::Server, 0)
    };
    table.note(ending, now);
    table.note(conn(1, Role::Client, 10), now);
    table.closed(1, now);
    assert!(table.lonely(now + SERVER_COMES).is_empty());
}
