//! Files that are there whole and on the disk, or not at all.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use super::Error;

/// For keys.
pub const SECRET: u32 = 0o600;
/// For everything else.
pub const PUBLIC: u32 = 0o644;

/// Puts a file in the place of whatever is there, in one step.
///
/// # Errors
/// It cannot be written; then what was there is there.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        // The parent of a bare name is empty, which no system call takes for the current folder.
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        // Mode 0600 from birth, and removed again if anything below fails.
        let mut file = tempfile::Builder::new()
            .prefix(".underseal-new")
            .tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file()
            .set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        sync(folder)
    };
    write().map_err(Error::file("write", path))
}

/// Makes a folder and those above it, for root alone.
///
/// # Errors
/// It cannot be made.
pub fn folder(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::file("make the folder", path))
}

/// What was made, renamed or removed in a folder is on the disk after this.
pub(super) fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The text of a file; `None` if there is none.
///
/// # Errors
/// It cannot be read.
pub fn text(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some).map_err(Error::file("read", path)),
    }
}
