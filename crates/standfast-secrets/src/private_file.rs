//! Writing files that hold secrets.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Only the owner may read it.
const MODE: u32 = 0o600;

/// Replaces a file that holds secrets as a whole: readers see the old content or the new, also after a power cut, and only its owner may read it (mode 0600).
/// Never writes through a link, nor into a file that somebody else has open.
///
/// # Errors
/// The folder cannot be written. Nothing is left behind then.
pub fn replace_private_file(path: &Path, content: &str) -> io::Result<()> {
    let mut temporary = path.to_owned().into_os_string();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(temporary);
    // A left-over of a killed process with the same id; `create_new` then makes sure of owner and mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = create(&temporary, content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn create(path: &Path, content: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(MODE).open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_replaced_private_and_never_through_a_link() {
        let folder = tempfile::tempdir().expect("folder");
        let (path, other) = (folder.path().join("a"), folder.path().join("other"));
        fs::write(&other, "untouched").expect("write");
        symlink(&other, &path).expect("link");
        for content in ["one", "two"] {
            replace_private_file(&path, content).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("read"), content);
            let mode = fs::symlink_metadata(&path)
                .expect("there")
                .permissions()
                .mode();
            assert_eq!(mode & 0o7777, MODE);
        }
        assert_eq!(fs::read_to_string(&other).expect("read"), "untouched");
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 2);
        assert!(replace_private_file(&folder.path().join("no/such"), "x").is_err());
    }
}
