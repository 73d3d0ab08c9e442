//! `underseal` with defences left out, `UNDERSEAL_WITHOUT=hold,guard,record,limit`, with small maps, `UNDERSEAL_ROOM=CONNS:8`, or killed when
//! some steps are done, `UNDERSEAL_STEPS=3`. For the scenarios `controls`, `preempt` and `faults_*` alone.

use std::process::ExitCode;

use underseal::cli;
use underseal::controls::Controls;

fn main() -> ExitCode {
    let without = std::env::var("UNDERSEAL_WITHOUT").unwrap_or_default();
    let is_out = |name: &str| without.split(',').any(|defence| defence == name);
    let room = std::env::var("UNDERSEAL_ROOM").unwrap_or_default();
    let room_of = |name: &str| {
        let rooms = room.split(',').filter_map(|room| room.split_once(':'));
        let mut here = rooms.filter(|(map, _)| *map == name);
        here.next()
            .map(|(_, room)| room.parse().expect("UNDERSEAL_ROOM"))
    };
    cli::main(Controls {
        no_hold: is_out("hold"),
        no_guard: is_out("guard"),
        no_record: is_out("record"),
        no_limit: is_out("limit"),
        conns: room_of("CONNS"),
        sleepers: room_of("SLEEPERS"),
        netns: room_of("NETNS"),
        steps: std::env::var("UNDERSEAL_STEPS")
            .ok()
            .map(|steps| steps.parse().expect("UNDERSEAL_STEPS")),
    })
}
