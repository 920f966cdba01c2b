//! Answers that are refused.

use super::*;

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

#[test]
fn a_portal_is_no_hub() {
    // A page for everything, as a page or without saying so, with the length of the file that was asked for or not.
    for named in [true, false] {
        let server = HubServer::with(Files::new(), move |_| match named {
            true => Some(Reply::page()),
            false => Some(Reply::page().without("Content-Type")),
        });
        let dir = tempfile::tempdir().unwrap();
        for spec in [REPO, "org/tiny:x.gguf"] {
            let repo = Repo::parse(spec).unwrap();
            let error = pull_from(&server, dir.path(), &repo).unwrap_err();
            check(&error, &["a web page", "HF_ENDPOINT"]);
            assert!(repo.cached(dir.path()).unwrap().is_none());
            assert!(staged(dir.path()).is_empty());
        }
    }
    let late = refused("model.safetensors", |_| Reply::page());
    check(&late, &["model.safetensors", "a web page (text/html)"]);
}

#[test]
fn contents_are_what_their_names_say() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
    for file in ["model.safetensors", "tokenizer.json"] {
        let error = refused(file, |_| Reply::new(200, pointer));
        check(&error, &[file, "a Git LFS pointer"]);
    }
    let error = refused("tokenizer_config.json", |_| Reply::new(200, b"busy"));
    check(
        &error,
        &["tokenizer_config.json", "no JSON object", "a JSON object"],
    );
    let error = refused("model.safetensors", |_| {
        Reply::new(200, b"garbage and more")
    });
    check(&error, &["model.safetensors", "header of safetensors"]);
    let server = HubServer::new([("x.gguf".to_string(), b"GGML".to_vec())].into());
    let dir = tempfile::tempdir().unwrap();
    let file = Repo::parse("org/tiny:x.gguf").unwrap();
    let error = pull_from(&server, dir.path(), &file).unwrap_err();
    check(&error, &["x.gguf", "begin with GGUF"]);
}

#[test]
fn an_endpoint_has_no_user_and_no_query() {
    for endpoint in [
        "http://me:1/secret@h",
        "http://h?secret",
        "http://me:secret@h",
    ] {
        let error = Client::new(endpoint, None, Duration::ZERO).unwrap_err();
        check(&error, &["HF_ENDPOINT", "http://"]);
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
