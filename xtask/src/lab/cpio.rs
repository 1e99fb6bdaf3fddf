//! The guest's root as the kernel takes it: an uncompressed cpio archive in the "newc" form.
//!
//! Layout: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Not compressed: unpacking would be
//! the emulated guest's work.

use crate::tool::cannot;
use std::fs;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive being written.
pub(super) struct Archive {
    out: BufWriter<fs::File>,
    entries: usize,
}

impl Archive {
    /// Begins an archive at `path`.
    pub(super) fn create(path: &Path) -> Result<Self, String> {
        let file = fs::File::create(path).map_err(|e| cannot(path, &e))?;
        Ok(Self { out: BufWriter::new(file), entries: 0 })
    }

    /// Adds all that is in `folder`, under `name` (empty for the top).
    pub(super) fn add_tree(&mut self, folder: &Path, name: &str) -> Result<(), String> {
        let entries = fs::read_dir(folder).map_err(|e| cannot(folder, &e))?;
        for entry in entries {
            let entry = entry.map_err(|e| cannot(folder, &e))?;
            let path = entry.path();
            let inner = Path::new(name).join(entry.file_name()).to_string_lossy().into_owned();
            let kind = entry.file_type().map_err(|e| cannot(&path, &e))?;
            if kind.is_symlink() {
                let to = fs::read_link(&path).map_err(|e| cannot(&path, &e))?;
                self.entry(&inner, LINK | 0o777, to.to_string_lossy().as_bytes())?;
            } else if kind.is_dir() {
                self.entry(&inner, FOLDER | 0o755, &[])?;
                self.add_tree(&path, &inner)?;
            } else if kind.is_file() {
                self.add_file(&path, &inner)?;
            }
        }
        Ok(())
    }

    /// Adds the file `path` as `name`.
    pub(super) fn add_file(&mut self, path: &Path, name: &str) -> Result<(), String> {
        let bytes = fs::read(path).map_err(|e| cannot(path, &e))?;
        let mode = fs::metadata(path).map_err(|e| cannot(path, &e))?.permissions().mode();
        self.entry(name, FILE | if mode & 0o111 == 0 { 0o644 } else { 0o755 }, &bytes)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Result<(), String> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush().map_err(|e| cannot("the guest's root", &e))
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) -> Result<(), String> {
        self.entries += 1;
        let links = if mode & FOLDER == FOLDER { 2 } else { 1 };
        let bytes = header([self.entries, mode as usize, links, data.len(), name.len() + 1]);
        // The header is 110 bytes long; name and data end on a multiple of four.
        let name_pad = 4 - (bytes.len() + name.len()) % 4;
        let data_pad = data.len().next_multiple_of(4) - data.len();
        let parts = [bytes.as_bytes(), name.as_bytes(), &[0; 4][..name_pad], data, &[0; 3][..data_pad]];
        parts.iter().try_for_each(|p| self.out.write_all(p)).map_err(|e| cannot("the guest's root", &e))
    }
}

/// Number, mode, links, size and the length of the name with its zero; owner, times and devices are 0.
fn header([number, mode, links, size, name]: [usize; 5]) -> String {
    let fields = [number, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name, 0];
    fields.iter().fold(String::from("070701"), |text, field| text + &format!("{field:08X}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_begin_on_a_multiple_of_four() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        for length in 0..9 {
            fs::write(&from, vec![b'x'; length]).unwrap();
            let name = "n".repeat(length + 1);
            let mut archive = Archive::create(&to).unwrap();
            archive.add_file(&from, &name).unwrap();
            archive.finish().unwrap();
            let bytes = fs::read(&to).unwrap();
            let data = (110 + name.len() + 1).next_multiple_of(4);
            assert_eq!(&bytes[110..=110 + name.len()], format!("{name}\0").as_bytes());
            assert_eq!(&bytes[data..data + length], vec![b'x'; length]);
            assert_eq!(&bytes[(data + length).next_multiple_of(4)..][..6], b"070701");
            assert_eq!(bytes.len() % 4, 0);
        }
    }
}
