use super::*;

/// Names in a folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let name = |entry: std::fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}

fn refused<T: std::fmt::Debug>(result: Result<T>, parts: &[&str]) {
    let error = result.unwrap_err();
    let message = error.to_string();
    assert!(error.is_refusal(), "{message}");
    for part in parts {
        assert!(message.contains(part), "no {part} in {message}");
    }
}

#[test]
fn reading_ends_at_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.json");
    std::fs::write(&path, "12345").unwrap();
    assert_eq!(read_capped(&path, 5).unwrap(), b"12345");
    assert_eq!(read_capped_text(&path, 9).unwrap(), "12345");
    refused(
        read_capped(&path, 4),
        &["x.json", "size is 5 bytes", "at most 4 bytes"],
    );
    refused(read_capped(&dir.path().join("y"), 4), &["y: "]);
    std::fs::write(&path, b"ab\xff").unwrap();
    refused(
        read_capped_text(&path, 9),
        &["x.json", "byte 0xff at offset 2", "UTF-8"],
    );
}

#[test]
fn a_folder_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::create_dir(&path).unwrap();
    let parts = ["config.json", "a directory", "a regular file"];
    refused(read_capped(&path, 4), &parts);
    refused(write_whole(&path, "x"), &parts);
    assert_eq!(names(dir.path()), ["config.json"]);
}

#[test]
fn writing_replaces_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    write_whole(&path, "a longer text").unwrap();
    write_whole(&path, "short").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"short");
    let missing = dir.path().join("none").join("x");
    refused(write_whole(&missing, "x"), &["none"]);
    assert_eq!(names(dir.path()), ["x"]);
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_fifo_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        assert!(
            Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        let (done, waiting) = mpsc::channel();
        let fifo = path.clone();
        // On a thread, so that a wait would fail the test and not hang it.
        std::thread::spawn(move || done.send(read_capped(&fifo, 9)));
        let result = waiting.recv_timeout(Duration::from_secs(10)).unwrap();
        refused(result, &["config.json", "a FIFO"]);
        refused(write_whole(&path, "x"), &["config.json", "a FIFO"]);
    }

    #[test]
    fn a_device_behind_a_link_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        symlink("/dev/zero", &path).unwrap();
        refused(read_capped(&path, 9), &["config.json", "a device"]);
        refused(write_whole(&path, "x"), &["config.json", "a device"]);
    }

    #[test]
    fn a_file_with_a_wrong_size_is_read_to_the_limit_only() {
        // Files of /proc say 0 bytes and have more.
        let path = Path::new("/proc/self/status");
        if path.exists() {
            refused(read_capped(path, 10), &["more than 10 bytes"]);
        }
    }

    #[test]
    fn no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("victim"), "old").unwrap();
        // The name that a simple writer would use for its part, and the target itself.
        symlink(at("victim"), at("x.part")).unwrap();
        symlink(at("victim"), at("x")).unwrap();
        write_whole(&at("x"), "new").unwrap();
        assert_eq!(std::fs::read(at("victim")).unwrap(), b"old");
        assert_eq!(std::fs::read(at("x")).unwrap(), b"new");
        assert!(at("x").symlink_metadata().unwrap().is_file());
        assert_eq!(names(dir.path()), ["victim", "x", "x.part"]);
    }

    #[test]
    fn others_may_read_as_the_umask_says() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("plain"), "").unwrap();
        write_whole(&at("whole"), "").unwrap();
        let mode = |name: &str| at(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode("whole"), mode("plain"));
    }
}

#[test]
fn byte_order_marks_go_and_other_encodings_are_named() {
    assert_eq!(text("p", "\u{feff}a\u{feff}".into()).unwrap(), "a\u{feff}");
    assert_eq!(without_mark("\u{feff}{}".as_bytes()), b"{}");
    for wrong in [&[0xff, 0xfe, b'a', 0][..], &[0xfe, 0xff, 0, b'a']] {
        let error = text("p", wrong.to_vec()).unwrap_err().to_string();
        assert!(error.contains("UTF-16"), "{error}");
    }
    let error = text("p", vec![b'a', 0x80]).unwrap_err().to_string();
    assert!(error.contains("byte 0x80 at offset 1"), "{error}");
}
