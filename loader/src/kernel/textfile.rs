//! The file that node_exporter's textfile collector reads: there whole, or as it was. It is not made to last: after a
//! reboot what it says is not true any more.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::error::Error;

/// Puts the text in the place of whatever is there, in one step, readable by everybody.
///
/// # Errors
/// It cannot be written; then what was there is there.
pub fn replace(path: &Path, text: &str) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        // The parent of a bare name is empty, which no system call takes for the current folder.
        let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
        // A collector reads names that end in .prom alone, so never this one.
        let mut file = tempfile::Builder::new()
            .prefix(".underseal-new")
            .tempfile_in(folder.unwrap_or(Path::new(".")))?;
        file.write_all(text.as_bytes())?;
        file.as_file()
            .set_permissions(Permissions::from_mode(0o644))?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|source| {
        let kind = source.kind();
        let error = Error::new("write", path.display().to_string(), source);
        match kind {
            io::ErrorKind::NotFound | io::ErrorKind::ReadOnlyFilesystem => error.explained(
                "make the folder that node_exporter reads; for the unit, name it in ReadWritePaths= of a drop-in, too",
            ),
            _ => error,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn it_is_replaced_as_a_whole_and_for_everybody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("underseal.prom");
        replace(&path, "one\n").unwrap();
        let first = fs::metadata(&path).unwrap();
        replace(&path, "two\n").unwrap();
        let second = fs::metadata(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        // Another file under the same name: whoever has opened the old one still reads it whole.
        assert_ne!(first.ino(), second.ino());
        assert_eq!(second.mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn without_the_folder_it_says_what_to_do() {
        let error = replace(Path::new("/nonexistent/underseal.prom"), "").unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("cannot write /nonexistent/underseal.prom: "),
            "{text}"
        );
        assert!(text.contains("ReadWritePaths="), "{text}");
    }
}
