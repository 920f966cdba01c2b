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
