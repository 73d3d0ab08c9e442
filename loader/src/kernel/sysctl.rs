//! Sysctls of the calling thread's network namespace; inside another one by [`super::netns::Netns::run`].

use std::fs;
use std::io;

use super::error::Error;

/// `net.ipv4.tcp_notsent_lowat` in bytes; `u32::MAX`, the kernel's default, means no limit.
///
/// # Errors
/// The file cannot be read.
pub fn notsent_lowat() -> Result<u32, Error> {
    read(NOTSENT_LOWAT)?
        .parse()
        .map_err(|error| Error::new("read sysctl", NOTSENT_LOWAT, io::Error::other(error)))
}

/// Sets `net.ipv4.tcp_notsent_lowat` in bytes.
///
/// # Errors
/// The kernel's refusal.
pub fn set_notsent_lowat(bytes: u32) -> Result<(), Error> {
    write(NOTSENT_LOWAT, &bytes.to_string())
}

/// The value of a sysctl, without the final newline.
///
/// # Errors
/// The file cannot be read.
pub fn read(name: &str) -> Result<String, Error> {
    let text =
        fs::read_to_string(path(name)).map_err(|source| Error::new("read sysctl", name, source))?;
    Ok(text.trim_end().to_owned())
}

/// Sets a sysctl.
///
/// # Errors
/// The kernel's refusal.
pub fn write(name: &str, value: &str) -> Result<(), Error> {
    fs::write(path(name), value)
        .map_err(|source| Error::new("set sysctl", format!("{name} to {value}"), source))
}

fn path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

const NOTSENT_LOWAT: &str = "net.ipv4.tcp_notsent_lowat";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::new_netns;

    #[test]
    fn notsent_lowat_is_of_one_namespace() {
        let (first, second) = (new_netns(), new_netns());
        let read = |netns: &crate::kernel::netns::Netns| netns.run(notsent_lowat).unwrap().unwrap();
        for bytes in [0, 131_072, u32::MAX] {
            first.run(|| set_notsent_lowat(bytes)).unwrap().unwrap();
            assert_eq!(read(&first), bytes);
            assert_eq!(read(&second), u32::MAX);
        }
    }

    #[test]
    fn refusal_names_sysctl_and_value() {
        let netns = new_netns();
        let error = netns
            .run(|| write(NOTSENT_LOWAT, "much"))
            .unwrap()
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot set sysctl net.ipv4.tcp_notsent_lowat to much: Invalid argument"
        );
        assert!(
            read("net.ipv4.absent")
                .unwrap_err()
                .to_string()
                .ends_with("No such file or directory")
        );
    }
}
