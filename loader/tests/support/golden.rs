//! Golden files: the expected text lies beside the input. `UPDATE_GOLDEN=1 cargo test` writes what
//! came out; read the difference before you commit it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// Entries of `tests/<folder>`, sorted.
///
/// # Panics
/// There are none: a test that tests nothing must not pass.
pub(crate) fn entries(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(folder);
    let mut entries: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    assert!(!entries.is_empty(), "{} is empty", folder.display());
    entries
}

/// Those of them whose names end in `.<ending>`.
///
/// # Panics
/// There are none.
pub(crate) fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut files = entries(folder);
    files.retain(|file| file.extension().is_some_and(|it| it == ending));
    assert!(!files.is_empty(), "{folder} has no .{ending}");
    files
}

/// Compares `text` with the content of `file`.
///
/// # Panics
/// They differ.
pub(crate) fn compare(file: &Path, text: &str) {
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(file, text).unwrap();
    }
    let expected = fs::read_to_string(file).unwrap_or_default();
    assert_eq!(
        text,
        expected,
        "{} (UPDATE_GOLDEN=1 writes it anew)",
        file.display()
    );
}
