//! `underseal-handshake` with steps left out, `UNDERSEAL_WITHOUT=restart,interrupted,send_buffer,rekey,dns_names`,
//! or that stops at one, `UNDERSEAL_STOP=key:3`. For the scenarios alone, as controls.

use std::process::ExitCode;

use underseal_ktls::helper::{Controls, main as run};

fn main() -> ExitCode {
    let without = std::env::var("UNDERSEAL_WITHOUT").unwrap_or_default();
    let is_out = |name: &str| without.split(',').any(|step| step == name);
    let stop = std::env::var("UNDERSEAL_STOP").unwrap_or_default();
    let stop = (!stop.is_empty()).then(|| stop.parse().expect("UNDERSEAL_STOP"));
    run(Controls {
        no_restart: is_out("restart"),
        no_interrupted: is_out("interrupted"),
        no_send_buffer: is_out("send_buffer"),
        no_rekey: is_out("rekey"),
        no_dns_names: is_out("dns_names"),
        stop,
    })
}
