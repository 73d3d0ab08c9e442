//! Writes the initramfs: a cpio archive in the "newc" format of
//! <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>.

/// An archive that grows by entries; all of them belong to root.
pub(crate) struct Initramfs {
    archive: Vec<u8>,
    entries: u32,
}

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Initramfs {
    /// An archive that has only `/dev/console`, without which PID 1 starts with no output.
    pub(crate) fn new() -> Self {
        let mut new = Self {
            archive: Vec::new(),
            entries: 0,
        };
        new.folder("dev");
        new.entry("dev/console", CHARACTER_DEVICE, &[], (5, 1));
        new
    }

    /// Adds a folder whose parent is there already.
    pub(crate) fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER, &[], (0, 0));
    }

    /// Adds an executable file whose folder is there already.
    pub(crate) fn file(&mut self, path: &str, data: &[u8]) {
        self.entry(path, FILE, data, (0, 0));
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.archive
    }

    fn entry(&mut self, path: &str, mode: u32, data: &[u8], device: (u32, u32)) {
        self.entries += 1;
        let (links, owner, time, check) = (1, 0, 0, 0);
        let fields = [
            self.entries,
            mode,
            owner,
            owner,
            links,
            time,
            data.len() as u32, // at most 4 GiB by the format
            0,
            0,
            device.0,
            device.1,
            path.len() as u32 + 1,
            check,
        ];
        self.archive.extend(b"070701");
        for field in fields {
            self.archive.extend(format!("{field:08x}").bytes());
        }
        self.archive.extend(path.bytes());
        self.archive.push(0);
        self.align();
        self.archive.extend(data);
        self.align();
    }

    fn align(&mut self) {
        self.archive
            .resize(self.archive.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_named() {
        let mut archive = Initramfs::new();
        archive.file("init", b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let at = bytes
            .windows(4)
            .position(|window| window == b"init")
            .unwrap();
        // 110 bytes of header, then the name with its zero, then padding to four.
        assert_eq!((at - 110) % 4, 0);
        assert_eq!(&bytes[(at + 5).next_multiple_of(4)..][..5], b"12345");
        assert_eq!(&bytes[at - 110..at - 104], b"070701");
        assert_eq!(&bytes[at - 110 + 54..at - 110 + 62], b"00000005");
    }
}
