//! `underseal key`: the node's WireGuard public key, for the other nodes' files. Makes the private
//! key if there is none; it is never shown.

use super::{Context, Error};
use crate::config::value::AbsolutePath;
use crate::kernel::key::PrivateKey;
use crate::report::Report;

/// Runs it.
///
/// # Errors
/// The file is not in order or has no WireGuard device, or the key file cannot be read or made.
pub fn run(context: &Context<'_>) -> Result<Report, Error> {
    let config = context.load()?;
    let Some(device) = &config.wireguard else {
        let path = context.path().display();
        return Err(Error::Usage(format!(
            "{path}: there is neither a [wireguard] section nor a peer, so there is no key"
        )));
    };
    shown(&device.private_key_file)
}

/// Runs `underseal key --next`.
///
/// # Errors
/// The file is not in order or has no `[wireguard.next]`, or the key file cannot be read or made.
pub fn next(context: &Context<'_>) -> Result<Report, Error> {
    let config = context.load()?;
    let next = config.wireguard.as_ref().and_then(|it| it.next.as_ref());
    let Some(next) = next else {
        let path = context.path().display();
        return Err(Error::Usage(format!(
            "{path}: there is no [wireguard.next] section, so there is no next key"
        )));
    };
    shown(&next.private_key_file)
}

fn shown(file: &AbsolutePath) -> Result<Report, Error> {
    let file = file.as_path();
    let key = match PrivateKey::read(file)? {
        Some(key) => key,
        None => PrivateKey::generate(file)?,
    };
    Ok(Report::Key {
        public_key: key.public(),
    })
}
