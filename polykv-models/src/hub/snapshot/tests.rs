//! Pulls from a hub on this machine.

#[path = "../../../../tests/hub_server.rs"]
mod hub_server;
mod lost;
mod refused;
mod store;

use super::super::access::Token;
use super::*;
use burn::tensor::Device;
use hub_server::{COMMIT, Files, HubServer, REPO, Reply, tiny_files};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

fn model() -> Repo {
    Repo::parse(REPO).unwrap()
}

fn tiny() -> Files {
    tiny_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures"))
}

fn token(text: &str) -> Option<Token> {
    Token::find(|name| (name == "HF_TOKEN").then(|| text.into())).unwrap()
}

fn pull_with(
    server: &HubServer,
    token: Option<Token>,
    cache: &Path,
    repo: &Repo,
) -> Result<PathBuf> {
    let client = Client::new(&server.url(), token, Duration::ZERO).unwrap();
    pull(&client, cache, repo, &mut |_| ())
}

fn pull_from(server: &HubServer, cache: &Path, repo: &Repo) -> Result<PathBuf> {
    pull_with(server, None, cache, repo)
}

/// Names of a folder's files, in order.
fn names(folder: &Path) -> Vec<String> {
    let mut names = super::names(folder);
    names.sort();
    names
}

/// What lies beside the revisions, but for the lock.
fn staged(cache: &Path) -> Vec<String> {
    let folder = model().home(cache).join(".part-main");
    assert!(!model().folder(cache).exists());
    names(&folder)
        .into_iter()
        .filter(|name| name != RECORD)
        .collect()
}

#[test]
fn a_model_is_fetched_whole_and_loads() {
    let server = HubServer::new(tiny());
    let dir = tempfile::tempdir().unwrap();
    let path = pull_from(&server, dir.path(), &model()).unwrap();
    assert_eq!(path, dir.path().join("org--tiny/main"));
    let expected = [
        ".pulled.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&path), expected);
    crate::load(&path, &Device::flex()).unwrap();
    let requests = server.requests();
    assert!(requests.iter().all(|r| r.header("authorization").is_none()));
    assert_eq!(requests[0].path, "/org/tiny/resolve/main/config.json");
    // Once the commit is known, a branch that moves does not mix two models.
    let pinned = format!("/org/tiny/resolve/{COMMIT}/");
    assert!(requests[1..].iter().all(|r| r.path.starts_with(&pinned)));
    assert!(!path.with_file_name(".part-main").exists());

    server.take();
    assert_eq!(pull_from(&server, dir.path(), &model()).unwrap(), path);
    assert_eq!(server.take(), ["HEAD config.json"], "it is there already");
}

#[test]
fn the_revision_is_part_of_the_address() {
    let server = HubServer::new(tiny());
    let dir = tempfile::tempdir().unwrap();
    let repo = model().at("refs/pr/1").unwrap();
    let path = pull_from(&server, dir.path(), &repo).unwrap();
    assert_eq!(path, dir.path().join("org--tiny/refs%2Fpr%2F1"));
    assert_eq!(
        server.requests()[0].path,
        "/org/tiny/resolve/refs%2Fpr%2F1/config.json"
    );
}

#[test]
fn a_gguf_file_comes_alone_and_beside_the_model() {
    let mut files = tiny();
    files.insert("x.gguf".to_string(), b"GGUF".to_vec());
    let server = HubServer::new(files);
    let dir = tempfile::tempdir().unwrap();
    let file = Repo::parse("org/tiny:x.gguf").unwrap();
    let path = pull_from(&server, dir.path(), &file).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"GGUF");
    assert_eq!(server.take(), ["HEAD x.gguf", "GET x.gguf"]);
    let folder = pull_from(&server, dir.path(), &model()).unwrap();
    assert_eq!(path, folder.join("x.gguf"));
    assert!(path.exists());
    server.take();
    pull_from(&server, dir.path(), &file).unwrap();
    assert_eq!(server.take(), ["HEAD x.gguf"]);
}

#[test]
fn every_part_of_a_split_gguf_file_comes() {
    let names = ["x-00001-of-00002.gguf", "x-00002-of-00002.gguf"];
    let mut files = tiny();
    files.insert(names[0].to_string(), b"GGUF".to_vec());
    let server = HubServer::new(files.clone());
    let dir = tempfile::tempdir().unwrap();
    let repos = names.map(|name| Repo::parse(&format!("{REPO}:{name}")).unwrap());
    let message = pull_from(&server, dir.path(), &repos[0]).unwrap_err();
    assert!(message.to_string().contains(names[1]), "{message}");
    assert!(repos[1].cached(dir.path()).unwrap().is_none());

    files.insert(names[1].to_string(), b"GGUF more".to_vec());
    server.set_files(files);
    for repo in &repos {
        let path = pull_from(&server, dir.path(), repo).unwrap();
        assert_eq!(path, model().folder(dir.path()).join(names[0]));
        assert_eq!(
            std::fs::read(path.with_file_name(names[1])).unwrap(),
            b"GGUF more"
        );
        assert_eq!(repo.cached(dir.path()).unwrap(), Some(path.clone()));
        assert_eq!(repo.verify(dir.path()).unwrap(), Some(path));
    }
    std::fs::remove_file(model().folder(dir.path()).join(names[1])).unwrap();
    assert!(repos[0].cached(dir.path()).unwrap().is_none());

    // What a pull of one part alone recorded.
    let dir = tempfile::tempdir().unwrap();
    let path = pull_from(&server, dir.path(), &repos[0]).unwrap();
    let record = repos[0].record(dir.path());
    let mut old = Record::read(&record).unwrap().unwrap();
    old.files.remove(names[1]);
    old.write(&record).unwrap();
    std::fs::remove_file(path.with_file_name(names[1])).unwrap();
    assert!(repos[0].cached(dir.path()).unwrap().is_none());
    pull_from(&server, dir.path(), &repos[0]).unwrap();
    assert!(repos[0].cached(dir.path()).unwrap().is_some());
}

#[test]
fn shards_come_by_the_index() {
    let mut files = tiny();
    let weights = files.remove("model.safetensors").unwrap();
    let weights = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let mut map = serde_json::Map::new();
    for shard in 0..2 {
        let tensors: Vec<_> = weights.iter().skip(shard).step_by(2).collect();
        let file = format!("m-{shard}.safetensors");
        let listed = tensors.iter().map(|(name, _)| name.to_string());
        map.extend(listed.map(|name| (name, file.clone().into())));
        files.insert(file, safetensors::serialize(tensors, None).unwrap());
    }
    let index = serde_json::json!({"weight_map": map}).to_string();
    files.insert(INDEX.to_string(), index.into());
    let server = HubServer::new(files.clone());
    let dir = tempfile::tempdir().unwrap();
    let path = pull_from(&server, dir.path(), &model()).unwrap();
    for (name, content) in &files {
        assert_eq!(&std::fs::read(path.join(name)).unwrap(), content, "{name}");
    }
    crate::load(&path, &Device::flex()).unwrap();

    let dir = tempfile::tempdir().unwrap();
    for (index, parts) in [
        (
            r#"{"weight_map": {"a": "../x.safetensors"}}"#,
            ["tensor a", "../x.safetensors"],
        ),
        (r#"{"weight_map": {"a": "x.bin"}}"#, ["tensor a", "x.bin"]),
        (r#"{"weight_map": {"a": 1}}"#, ["tensor a", " 1;"]),
        (r#"{"weight_map": {}}"#, ["weight_map", "empty"]),
        ("[", ["content", "JSON"]),
    ] {
        files.insert(INDEX.to_string(), index.into());
        server.set_files(files.clone());
        let error = pull_from(&server, dir.path(), &model()).unwrap_err();
        let message = error.to_string();
        assert!(error.is_refusal() && message.contains(INDEX), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        assert!(staged(dir.path()).is_empty());
    }
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let files = tiny();
    let weights = files["model.safetensors"].clone();
    let (size, sha256) = (weights.len(), sha256(&weights));
    let store = HubServer::with(Files::new(), move |request| {
        Some(Reply::file(request, &weights))
    });
    let elsewhere = format!("{}/blob?signed=yes", store.url());
    let hub = HubServer::with(files, move |request| {
        let to = |path: &str| Reply::new(307, b"").header("Location", path);
        match request.path.rsplit('/').next()? {
            "model.safetensors" => Some(
                to(&elsewhere)
                    .header("X-Linked-Etag", format!("\"{sha256}\""))
                    .header("X-Linked-Size", size),
            ),
            "tokenizer.json" if request.path.starts_with("/org/") => {
                Some(to("/org/tiny/resolve/main/tokenizer.json").header("X-Repo-Commit", COMMIT))
                    .filter(|_| !request.path.contains("/main/"))
            }
            _ => None,
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let path = pull_with(&hub, token("hf_secret"), dir.path(), &model()).unwrap();
    crate::load(&path, &Device::flex()).unwrap();
    let sent = |server: &HubServer, value| {
        let requests = server.requests();
        !requests.is_empty() && requests.iter().all(|r| r.header("authorization") == value)
    };
    assert!(sent(&hub, Some("Bearer hf_secret")), "{:?}", hub.requests());
    assert!(sent(&store, None), "{:?}", store.requests());
    assert_eq!(store.requests()[0].path, "/blob?signed=yes");
}

#[test]
fn a_branch_that_moves_is_fetched_anew() {
    // As it was; moved, but the weights are out of reach; moved.
    let phase = Arc::new(AtomicU8::new(0));
    let (now, commit) = (phase.clone(), "f".repeat(40));
    let server = HubServer::with(tiny(), move |request| {
        let name = request.path.rsplit('/').next()?;
        let content = tiny().remove(name)?;
        let reply = Reply::file(request, &content).header("X-Repo-Commit", &commit);
        match (now.load(Ordering::SeqCst), name) {
            (0, _) => None,
            (1, "model.safetensors") => Some(Reply::new(503, b"")),
            (_, "tokenizer_config.json") => Some(Reply::new(404, b"")),
            _ => Some(reply),
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let path = pull_from(&server, dir.path(), &model()).unwrap();
    let commit = || {
        Record::read(&path.join(RECORD))
            .unwrap()
            .unwrap()
            .commit
            .unwrap()
    };
    let has_chat = || path.join("tokenizer_config.json").exists();
    phase.store(1, Ordering::SeqCst);
    pull_from(&server, dir.path(), &model()).unwrap_err();
    assert_eq!(
        (commit().as_str(), has_chat()),
        (COMMIT, true),
        "the old one stays"
    );
    phase.store(2, Ordering::SeqCst);
    pull_from(&server, dir.path(), &model()).unwrap();
    assert_eq!((commit(), has_chat()), ("f".repeat(40), false));
    crate::load(&path, &Device::flex()).unwrap();
}

#[test]
fn one_pull_at_a_time() {
    let server = HubServer::new(tiny());
    let dir = tempfile::tempdir().unwrap();
    let first = Staging::open(dir.path(), &model(), None).unwrap();
    let error = pull_from(&server, dir.path(), &model()).unwrap_err();
    assert!(
        error.is_refusal() && error.to_string().contains("another process"),
        "{error}"
    );
    drop(first);
    pull_from(&server, dir.path(), &model()).unwrap();
}

fn sha256(content: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(content)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}
