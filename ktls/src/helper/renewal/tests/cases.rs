//! What the two nodes come to.

use proptest::prelude::*;

use super::*;

#[test]
fn both_directions_get_new_keys_whoever_begins() {
    for begins in [&[0][..], &[1], &[0, 1], &[1, 0]] {
        let mut world = World::new();
        world.connect();
        begins.iter().for_each(|side| world.ask(*side));
        for n in 0..40 {
            for side in 0..2 {
                world.kernels.borrow_mut()[side].write(n % 3 != 0);
            }
            world.run(10);
        }
        assert!(!world.is_reset());
        assert_eq!(world.counted(HelperCounter::Rekeyed), [1, 1], "{begins:?}");
        let noted = world.sides.each_ref().map(|side| side.hands.noted);
        assert_eq!(noted, [1, 1]);
        world.assert_whole();
    }
}

#[test]
fn a_kernel_that_does_not_replace_keys_verifies_alone() {
    for unable in 0..2 {
        let mut world = World::new();
        world.sides[unable].hands.able = false;
        world.ask(0);
        world.connect();
        world.run(50);
        assert_eq!(world.counted(HelperCounter::Rechecked), [1, 1]);
        assert_eq!(world.counted(HelperCounter::Rekeyed), [0, 0]);
        assert!(world.sides.iter().all(|s| s.renewals.under_way.is_empty()));
        world.assert_whole();
    }
}

#[test]
fn a_refused_certificate_ends_both_with_the_reason() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    for wrong in 0..2 {
        for begins in 0..2 {
            let mut cas = [&ca, &ca];
            cas[wrong] = &other;
            let mut world = World::with(identity(cas[0], CART), identity(cas[1], TILL));
            world.connect();
            world.ask(begins);
            world.run(50);
            let resets = world.sides.each_ref().map(|side| side.reset);
            assert_eq!(resets, [Some(HelperCounter::ResetRefused); 2]);
            assert_eq!(world.counted(HelperCounter::RefusedRecheck), [1, 1]);
            assert_eq!(world.counted(HelperCounter::Rechecked), [0, 0]);
        }
    }
}

#[test]
fn a_reader_that_pauses_puts_it_off() {
    let mut world = World::new();
    world.connect();
    world.kernels.borrow_mut()[0].write(true);
    world.ask(0);
    for _ in 0..3000 {
        world.settle();
        world.wait(1);
    }
    assert_eq!(world.counted(HelperCounter::RekeyPutOff), [1, 0]);
    // The other direction is not concerned.
    assert_eq!(world.counted(HelperCounter::Rekeyed), [0, 1]);
    world.assert_whole();
}

#[test]
fn a_helper_that_is_away_or_older_is_waited_for() {
    let mut world = World::new();
    world.ask(0);
    world.turn();
    assert!(world.sides[0].reach && world.sides[0].renewals.needs(OTHER));
    world.sides[0].renewals.link_up(9, OTHER, Direction::Out);
    world.turn();
    assert!(
        world.sides[1].letters.is_empty(),
        "says what an older one does not understand"
    );
    world.sides[0]
        .renewals
        .link_down(9, &mut world.sides[0].hands);
    world.connect();
    world.run(50);
    assert_eq!(world.counted(HelperCounter::Rekeyed), [1, 1]);
}

#[test]
fn one_that_does_not_answer_is_given_up() {
    let mut world = World::new();
    world.connect();
    world.ask(0);
    world.turn();
    world.sides[1].letters.clear();
    world.wait(31_000);
    assert!(world.sides[0].renewals.under_way.is_empty() && !world.is_reset());
    world.assert_whole();
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Ask(usize),
    Hear(usize),
    Write(usize, bool),
    Finish(usize),
    Arrive(usize),
    Read(usize),
    Wait(u64),
    Break,
    Connect,
    Kill(usize),
    End(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let side = || 0usize..2;
    prop_oneof![
        4 => side().prop_map(Event::Ask),
        24 => side().prop_map(Event::Hear),
        4 => (side(), any::<bool>()).prop_map(|(side, whole)| Event::Write(side, whole)),
        3 => side().prop_map(Event::Finish),
        6 => side().prop_map(Event::Arrive),
        8 => side().prop_map(Event::Read),
        12 => (0u64..60).prop_map(Event::Wait),
        1 => Just(Event::Wait(3_000)),
        1 => Just(Event::Break),
        4 => Just(Event::Connect),
        1 => side().prop_map(Event::Kill),
        1 => side().prop_map(Event::End),
    ]
}

fn play(world: &mut World, event: Event) {
    let kernels = Rc::clone(&world.kernels);
    match event {
        Event::Ask(side) => world.ask(side),
        Event::Hear(side) => drop(world.hear(side)),
        Event::Write(side, whole) => kernels.borrow_mut()[side].write(whole),
        Event::Finish(side) => kernels.borrow_mut()[side].finish(),
        Event::Arrive(side) => world.arrive(side),
        Event::Read(side) => kernels.borrow_mut()[side].read(),
        Event::Wait(millis) => world.wait(millis),
        Event::Break => world.disconnect(),
        Event::Connect if world.links.is_none() => world.connect(),
        Event::Connect => world.turn(),
        Event::Kill(side) => world.kill(side),
        Event::End(side) => {
            let side = &mut world.sides[side];
            side.renewals.end(&mut side.hands);
            world.carry_out();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Wherever links break and helpers die: no record is opened under another key than it was sent with
    /// (`Socket::read`), and in the end both ends go on, or one is reset.
    #[test]
    fn no_key_is_used_that_the_other_end_does_not_have(events in prop::collection::vec(event(), 0..200)) {
        let mut world = World::new();
        world.connect();
        for event in events {
            if world.is_reset() {
                return Ok(());
            }
            play(&mut world, event);
        }
        // Whatever is under way comes to its end, or is given up.
        world.run(200);
        world.disconnect();
        for side in 0..2 {
            world.kernels.borrow_mut()[side].finish();
        }
        if !world.is_reset() {
            world.assert_whole();
        }
    }
}
