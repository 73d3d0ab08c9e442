use super::*;

fn set(tag: &str) -> Set {
    Set {
        certificate: format!("{tag} crt"),
        key: Zeroizing::new(format!("{tag} key")),
        bundle: Bundle {
            certificates: format!("{tag} ca"),
            lists: format!("{tag} crl"),
        },
    }
}

/// What a reader sees, file by file; `None` for one that is not there.
fn seen(folder: &Path) -> [Option<String>; 4] {
    FILES.map(|name| fs::read_to_string(folder.join(name)).ok())
}

fn whole(set: &Set) -> [Option<String>; 4] {
    let bundle = &set.bundle;
    [
        &set.certificate,
        &*set.key,
        &bundle.certificates,
        &bundle.lists,
    ]
    .map(|it| Some(it.clone()))
}

/// Killed before any step, or half-way through the writing of any file: old or new, whole; and the
/// next attempt goes through and leaves nothing behind.
#[test]
fn killed_at_any_moment_it_is_old_or_new() {
    let count = steps(Path::new("/x"), Proof::None).len();
    let (mut old_seen, mut new_seen) = (0, 0);
    for first_write in [true, false] {
        for stop in 0..=count {
            let place = tempfile::tempdir().unwrap();
            let folder = place.path().join("identity");
            if !first_write {
                put(&folder, &set("old"), "", Proof::None).unwrap();
            }
            let before = seen(&folder);
            durable::folder(&folder).unwrap();
            for step in steps(&folder, Proof::None).iter().take(stop) {
                step.carry_out(&folder, &set("new"), "").unwrap();
                let now = seen(&folder);
                assert!(now == before || now == whole(&set("new")), "{now:?}");
            }
            // The step that was cut off: half a file, or the link that was to be renamed.
            match steps(&folder, Proof::None).get(stop) {
                Some(Step::File(path)) => {
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, "ne").unwrap();
                }
                Some(Step::Swap(data)) => {
                    symlink(data.file_name().unwrap(), folder.join(NEXT)).unwrap();
                }
                _ => {}
            }
            let now = seen(&folder);
            if now == before {
                old_seen += 1;
            } else {
                assert_eq!(now, whole(&set("new")));
                new_seen += 1;
            }
            put(&folder, &set("next"), "", Proof::None).unwrap();
            assert_eq!(seen(&folder), whole(&set("next")));
            let left = fs::read_dir(&folder).unwrap().count();
            assert_eq!(
                left,
                FILES.len() + 2,
                "something was left after step {stop}"
            );
        }
    }
    assert!(old_seen > 0 && new_seen > 0, "{old_seen} {new_seen}");
}

/// The control of the test above: files that are written in place show a mixture.
#[test]
fn written_in_place_a_mixture_would_be_seen() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    put(folder, &set("old"), "", Proof::None).unwrap();
    fs::remove_file(folder.join("tls.crt")).unwrap();
    fs::write(folder.join("tls.crt"), "new crt").unwrap();
    let now = seen(folder);
    assert!(now != whole(&set("old")) && now != whole(&set("new")));
}

#[test]
fn folders_of_others_are_not_written_to() {
    use std::os::unix::fs::PermissionsExt;
    for prepare in [
        (|folder| fs::write(folder.join("tls.crt"), "theirs")) as fn(&Path) -> io::Result<()>,
        |folder| symlink("..2026_11_24_10_00_00.1", folder.join("..data")),
        |folder| symlink("/elsewhere/tls.key", folder.join("tls.key")),
        |folder| fs::create_dir(folder.join("..data")),
    ] {
        let place = tempfile::tempdir().unwrap();
        prepare(place.path()).unwrap();
        let names = || {
            let entries = fs::read_dir(place.path()).unwrap();
            entries
                .map(|entry| entry.unwrap().file_name())
                .collect::<Vec<_>>()
        };
        let before = names();
        let error = put(place.path(), &set("new"), "", Proof::None).unwrap_err();
        assert!(error.to_string().contains("is not Underseal's"), "{error}");
        assert_eq!(names(), before);
    }
    let place = tempfile::tempdir().unwrap();
    put(place.path(), &set("new"), "", Proof::None).unwrap();
    let mode = fs::metadata(place.path().join("tls.key"))
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o7777, 0o600);
}

#[test]
fn what_its_own_bundle_does_not_accept_stays_out() {
    let place = tempfile::tempdir().unwrap();
    put(place.path(), &set("old"), "", Proof::None).unwrap();
    put(place.path(), &set("bad"), "spiffe://a/b", Proof::Handshake).unwrap_err();
    assert_eq!(seen(place.path()), whole(&set("old")));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), FILES.len() + 2);
}

/// Without the lock one would remove what the other one's link has just come to lead to.
#[test]
fn two_at_once_leave_one_of_two() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    std::thread::scope(|scope| {
        for tag in ["one", "other"] {
            scope.spawn(move || {
                for _ in 0..30 {
                    put(folder, &set(tag), "", Proof::None).unwrap();
                }
            });
        }
    });
    let now = seen(folder);
    assert!(
        now == whole(&set("one")) || now == whole(&set("other")),
        "{now:?}"
    );
}

#[test]
fn no_list_is_no_file() {
    let place = tempfile::tempdir().unwrap();
    let mut without = set("old");
    without.bundle.lists.clear();
    put(place.path(), &set("older"), "", Proof::None).unwrap();
    put(place.path(), &without, "", Proof::None).unwrap();
    assert!(!place.path().join("ca.crl").exists());
    assert!(matches!(look(place.path()).unwrap(), Found::Ours(found) if found == without));
    put(place.path(), &set("new"), "", Proof::None).unwrap();
    assert_eq!(seen(place.path()), whole(&set("new")));
}
