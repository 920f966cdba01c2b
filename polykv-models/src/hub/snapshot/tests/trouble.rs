//! Connections that end, and answers that are refused.

use super::*;
use std::sync::atomic::AtomicUsize;

const CUT: usize = 50_000;

/// The number of a request among those that `rule` counts, from 0.
fn counted(
    rule: impl Fn(&hub_server::Request, usize) -> Option<Reply> + Send + Sync + 'static,
) -> impl Fn(&hub_server::Request) -> Option<Reply> + Send + Sync {
    let count = AtomicUsize::new(0);
    move |request| {
        let counts = request.is_get("model.safetensors");
        let number = counts.then(|| count.fetch_add(1, Ordering::SeqCst))?;
        rule(request, number)
    }
}

fn weights() -> Vec<u8> {
    tiny().remove("model.safetensors").unwrap()
}

/// The Range headers of the requests for the weights.
fn ranges(server: &HubServer) -> Vec<Option<String>> {
    let requests = server.requests();
    let weights = requests.iter().filter(|r| r.is_get("model.safetensors"));
    weights
        .map(|r| r.header("range").map(str::to_string))
        .collect()
}

fn range(from: usize) -> Option<String> {
    Some(format!("bytes={from}-"))
}

#[test]
fn a_lost_connection_is_resumed() {
    let whole = weights();
    let content = whole.clone();
    let server = HubServer::with(
        tiny(),
        counted(move |request, number| match number {
            0 | 1 => Some(Reply::file(request, &content).cut(CUT)),
            _ => None,
        }),
    );
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(&server.url(), None, Duration::ZERO).unwrap();
    let mut last = 0;
    let path = pull(&client, dir.path(), &model(), &mut |step| {
        if let Step::File { name, done, total } = step
            && &*name == "model.safetensors"
        {
            assert!(
                done > last && total == whole.len() as u64,
                "{done} of {total}"
            );
            last = done;
        }
    })
    .unwrap();
    assert_eq!(last, whole.len() as u64);
    assert_eq!(
        std::fs::read(path.join("model.safetensors")).unwrap(),
        whole
    );
    assert_eq!(ranges(&server), [None, range(CUT), range(2 * CUT)]);
}

#[test]
fn the_next_pull_goes_on_where_one_gave_up() {
    let content = weights();
    let first = HubServer::with(
        tiny(),
        counted(move |request, number| {
            let cut = if number == 0 { CUT } else { 0 };
            Some(Reply::file(request, &content).cut(cut))
        }),
    );
    let dir = tempfile::tempdir().unwrap();
    let error = pull_from(&first, dir.path(), &model()).unwrap_err();
    let message = error.to_string();
    assert!(!error.is_refusal(), "{message}");
    for part in [
        "org/tiny",
        "main",
        "model.safetensors",
        "50000 bytes",
        "polykv pull org/tiny",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(model().cached(dir.path()).is_none());
    assert!(
        staged(dir.path())
            .iter()
            .any(|name| name.ends_with(".part"))
    );

    let second = HubServer::new(tiny());
    let path = pull_from(&second, dir.path(), &model()).unwrap();
    assert_eq!(
        std::fs::read(path.join("model.safetensors")).unwrap(),
        weights()
    );
    assert_eq!(ranges(&second), [range(CUT)]);
    assert!(
        !second.take().contains(&"GET tokenizer.json".to_string()),
        "it came before"
    );
    assert!(!path.with_file_name(".part-main").exists());
}

#[test]
fn other_contents_are_not_appended() {
    for wrong in 0..4 {
        let content = weights();
        let server = HubServer::with(
            tiny(),
            counted(move |request, number| {
                let reply = Reply::file(request, &content);
                match (number, wrong) {
                    (0, _) => Some(reply.cut(CUT)),
                    (1, 0) => Some(reply.header("ETag", "\"other\"")),
                    (1, 1) => Some(reply.header("Content-Range", "bytes 0-9/10")),
                    (1, 2) => Some(Reply::new(416, b"")),
                    // As if it knew no ranges.
                    (1, 3) => Some(Reply::new(200, &content).header("ETag", "\"other\"")),
                    _ => None,
                }
            }),
        );
        let dir = tempfile::tempdir().unwrap();
        let path = pull_from(&server, dir.path(), &model()).unwrap();
        assert_eq!(
            std::fs::read(path.join("model.safetensors")).unwrap(),
            weights(),
            "{wrong}"
        );
        let expected = [None, range(CUT), None];
        let count = if wrong == 3 { 2 } else { 3 };
        assert_eq!(ranges(&server), expected[..count], "{wrong}");
    }
}

/// Pulls with one file's answer changed; the error, after which nothing is left.
fn refused(file: &'static str, change: impl Fn(Reply) -> Reply + Send + Sync + 'static) -> Error {
    let server = HubServer::with(tiny(), move |request| {
        let content = tiny().remove(file).unwrap_or_default();
        let wanted = request.path.ends_with(&format!("/{file}"));
        wanted.then(|| change(Reply::file(request, &content)))
    });
    let dir = tempfile::tempdir().unwrap();
    let error = pull_from(&server, dir.path(), &model()).unwrap_err();
    assert!(
        staged(dir.path()).is_empty(),
        "{file}: {:?}",
        staged(dir.path())
    );
    error
}

#[track_caller]
fn check(error: &Error, parts: &[&str]) {
    let message = error.to_string();
    assert!(error.is_refusal(), "{message}");
    for part in parts {
        assert!(message.contains(part), "no '{part}' in {message}");
    }
}

#[test]
fn sizes_and_sums_are_checked() {
    let weights = "model.safetensors";
    let huge = refused("config.json", |reply| {
        reply.header("Content-Length", 1u64 << 40)
    });
    check(
        &huge,
        &[
            "config.json",
            "1099511627776 bytes",
            "at most 67108864 bytes",
        ],
    );
    let other = refused(weights, |reply| reply.header("X-Linked-Size", 5));
    check(&other, &[weights, "size", "5 bytes, as the hub says"]);
    let none = refused(weights, |reply| reply.without("Content-Length"));
    check(&none, &[weights, "Content-Length", "missing"]);
    let sum = "0".repeat(64);
    let changed = refused(weights, move |reply| reply.header("X-Linked-Etag", &sum));
    check(&changed, &[weights, "sha256", &"0".repeat(64)]);
    let turns = refused(weights, |_| {
        Reply::new(302, b"").header("Location", "/x/model.safetensors")
    });
    check(&turns, &[weights, "redirects", "at most 5"]);
    let nowhere = refused(weights, |_| {
        Reply::new(302, b"").header("Location", "ftp://x/")
    });
    check(&nowhere, &[weights, "redirect", "ftp://x/"]);
}

#[test]
fn a_chunked_text_is_taken() {
    let mut files = tiny();
    let content = files.remove("config.json").unwrap();
    let server = HubServer::with(files, move |request| {
        let mut body = format!("{:x}\r\n", content.len()).into_bytes();
        body.extend_from_slice(&content);
        body.extend_from_slice(b"\r\n0\r\n\r\n");
        let reply = Reply::new(200, &body).without("Content-Length");
        let wanted = request.path.ends_with("/config.json");
        wanted.then(|| reply.header("Transfer-Encoding", "chunked"))
    });
    let dir = tempfile::tempdir().unwrap();
    let path = pull_from(&server, dir.path(), &model()).unwrap();
    assert_eq!(
        std::fs::read(path.join("config.json")).unwrap(),
        tiny()["config.json"]
    );
}

#[test]
fn refusals_of_the_hub_say_what_to_do() {
    let server = HubServer::new(tiny());
    let dir = tempfile::tempdir().unwrap();
    let pull = |repo: &Repo, token| pull_with(&server, token, dir.path(), repo).unwrap_err();
    let private = Repo::parse("org/private").unwrap();
    let parts = [
        "org/private",
        "revision main",
        "config.json",
        "401",
        "RepoNotFound",
    ];
    check(&pull(&private, None), &parts);
    check(&pull(&private, None), &["HF_TOKEN", "no token was found"]);
    let message = pull(&private, token("hf_secret"));
    check(&message, &["is not enough"]);
    assert!(!message.to_string().contains("hf_secret"));
    let revision = model().at("v9").unwrap();
    check(
        &pull(&revision, None),
        &["org/tiny", "revision v9", "404", "RevisionNotFound"],
    );
    let file = Repo::parse("org/tiny:y.gguf").unwrap();
    check(
        &pull(&file, None),
        &["org/tiny", "y.gguf", "404 Not Found (EntryNotFound)"],
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    check(
        &refused("tokenizer.json", |_| Reply::new(404, b"")),
        &["tokenizer.json", "404"],
    );
    let gated = refused("model.safetensors", |_| {
        Reply::new(403, b"").header("X-Error-Code", "GatedRepo")
    });
    check(
        &gated,
        &[
            "model.safetensors",
            "403 Forbidden (GatedRepo)",
            "accept its terms",
        ],
    );
    let teapot = refused("config.json", |_| Reply::new(418, b""));
    check(&teapot, &["config.json", "418"]);
    let busy = refused("config.json", |_| Reply::new(503, b""));
    assert!(
        !busy.is_refusal() && busy.to_string().contains("503"),
        "{busy}"
    );

    let mut files = tiny();
    files.remove("model.safetensors");
    server.set_files(files);
    check(
        &pull(&model(), None),
        &[
            "org/tiny",
            "weights",
            "model.safetensors.index.json",
            ":FILE.gguf",
        ],
    );
    assert!(staged(dir.path()).is_empty());
}

#[test]
fn a_hub_that_is_not_there() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(&url, None, Duration::ZERO).unwrap();
    let error = pull(&client, dir.path(), &model(), &mut |_| ()).unwrap_err();
    assert!(
        !error.is_refusal() && error.to_string().contains(&url),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Without commits, whole files of an earlier try may be of another one; a part has its etag.
#[test]
fn a_hub_without_commits() {
    let hub = |works: bool| {
        let count = AtomicUsize::new(0);
        HubServer::with(tiny(), move |request| {
            let content = tiny().remove(request.path.rsplit('/').next()?)?;
            let reply = Reply::file(request, &content).without("X-Repo-Commit");
            if works || !request.is_get("model.safetensors") {
                return Some(reply);
            }
            match count.fetch_add(1, Ordering::SeqCst) {
                0 => Some(reply.cut(CUT)),
                _ => Some(Reply::new(403, b"")),
            }
        })
    };
    let dir = tempfile::tempdir().unwrap();
    check(
        &pull_from(&hub(false), dir.path(), &model()).unwrap_err(),
        &["403"],
    );
    assert!(!staged(dir.path()).is_empty());
    let server = hub(true);
    let path = pull_from(&server, dir.path(), &model()).unwrap();
    assert_eq!(ranges(&server), [range(CUT)]);
    assert!(server.take().contains(&"GET tokenizer.json".to_string()));
    assert!(!path.join(RECORD).exists());
}
