//! What pulls leave in the cache and what they leave alone.

use super::*;

/// Moves the branch with every pull, so that each one replaces what the one before put there.
fn moving() -> HubServer {
    let count = AtomicU8::new(0);
    HubServer::with(tiny(), move |request| {
        let first = request.method == "HEAD";
        let number = match first {
            true => count.fetch_add(1, Ordering::SeqCst) + 1,
            false => count.load(Ordering::SeqCst),
        };
        let content = tiny().remove(request.path.rsplit('/').next()?)?;
        let commit = format!("{number:040x}");
        Some(Reply::file(request, &content).header("X-Repo-Commit", commit))
    })
}

#[test]
fn a_pull_removes_only_what_a_pull_wrote() {
    let server = moving();
    let dir = tempfile::tempdir().unwrap();
    let path = pull_from(&server, dir.path(), &model()).unwrap();
    let mine = ["notes.txt", "adapter.safetensors", "chat_template.jinja"];
    for name in mine {
        std::fs::write(path.join(name), "mine").unwrap();
    }
    std::fs::create_dir(path.join("sub")).unwrap();
    pull_from(&server, dir.path(), &model()).unwrap();
    for name in mine {
        assert_eq!(std::fs::read(path.join(name)).unwrap(), b"mine", "{name}");
    }
    assert!(path.join("sub").is_dir());
    crate::load(&path, &Device::flex()).unwrap();
}

#[test]
fn a_file_of_somebody_else_is_not_replaced() {
    let server = HubServer::new(tiny());
    for name in ["config.json", "model.safetensors"] {
        let dir = tempfile::tempdir().unwrap();
        let folder = model().folder(dir.path());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), "mine").unwrap();
        let error = pull_from(&server, dir.path(), &model()).unwrap_err();
        let message = error.to_string();
        assert!(error.is_refusal(), "{message}");
        assert!(
            message.contains(name) && message.contains("no pull wrote"),
            "{message}"
        );
        assert_eq!(super::names(&folder), [name]);
        assert_eq!(std::fs::read(folder.join(name)).unwrap(), b"mine");
        std::fs::remove_file(folder.join(name)).unwrap();
        pull_from(&server, dir.path(), &model()).unwrap();
    }
}

#[test]
fn the_folder_of_parts_goes_only_when_it_is_empty() {
    let server = HubServer::with(tiny(), |request| {
        request
            .is_get("tokenizer.json")
            .then(|| Reply::new(403, b""))
    });
    let dir = tempfile::tempdir().unwrap();
    let staging = model().home(dir.path()).join(".part-main");
    std::fs::create_dir_all(&staging).unwrap();
    std::fs::write(staging.join("notes.txt"), "mine").unwrap();
    pull_from(&server, dir.path(), &model()).unwrap_err();
    assert_eq!(super::names(&staging), ["notes.txt"]);
}

#[test]
fn what_is_missing_or_cut_is_fetched_again() {
    let server = HubServer::new(tiny());
    let dir = tempfile::tempdir().unwrap();
    let path = pull_from(&server, dir.path(), &model()).unwrap();
    let weights = path.join("model.safetensors");
    for spoil in [
        |file: &Path| std::fs::write(file, "GG").unwrap(),
        |file: &Path| std::fs::remove_file(file).unwrap(),
    ] {
        spoil(&weights);
        assert!(model().cached(dir.path()).unwrap().is_none());
        pull_from(&server, dir.path(), &model()).unwrap();
        assert_eq!(
            std::fs::read(&weights).unwrap(),
            tiny()["model.safetensors"]
        );
    }
}

#[test]
fn sums_are_stored_and_compared() {
    let server = HubServer::new(tiny());
    let dir = tempfile::tempdir().unwrap();
    assert!(model().verify(dir.path()).unwrap().is_none());
    let path = pull_from(&server, dir.path(), &model()).unwrap();
    let record = Record::read(&path.join(RECORD)).unwrap().unwrap();
    assert_eq!(record.commit.as_deref(), Some(COMMIT));
    for (name, content) in tiny() {
        let entry = &record.files[&name];
        assert_eq!(entry.bytes, content.len() as u64);
        assert_eq!(entry.sha256, sha256(&content), "{name}");
    }
    assert_eq!(model().verify(dir.path()).unwrap(), Some(path.clone()));
    let mut weights = tiny().remove("model.safetensors").unwrap();
    *weights.last_mut().unwrap() ^= 1;
    std::fs::write(path.join("model.safetensors"), &weights).unwrap();
    let error = model().verify(dir.path()).unwrap_err();
    let message = error.to_string();
    assert!(error.is_refusal(), "{message}");
    for part in [
        "model.safetensors",
        &sha256(&weights),
        &sha256(&tiny()["model.safetensors"]),
        "polykv pull org/tiny",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

/// A part that was resumed has the sum of the whole file.
#[test]
fn the_sum_of_a_resumed_file_is_whole() {
    let cut = |works: bool| {
        HubServer::with(tiny(), move |request| {
            let content = tiny().remove("model.safetensors").unwrap();
            let wanted = request.is_get("model.safetensors") && !works;
            let cut = if request.header("range").is_some() {
                0
            } else {
                50_000
            };
            wanted.then(|| Reply::file(request, &content).cut(cut))
        })
    };
    let dir = tempfile::tempdir().unwrap();
    pull_from(&cut(false), dir.path(), &model()).unwrap_err();
    pull_from(&cut(true), dir.path(), &model()).unwrap();
    model().verify(dir.path()).unwrap().unwrap();
}

#[cfg(unix)]
#[test]
fn links_in_the_cache_are_refused() {
    use std::os::unix::fs::symlink;
    let server = HubServer::new(tiny());
    let elsewhere = tempfile::tempdir().unwrap();
    let victim = elsewhere.path().join("victim");
    let home = |cache: &Path| model().home(cache);
    type Place = fn(&Path) -> PathBuf;
    let places: [(Place, bool); 7] = [
        (|home| home.to_path_buf(), true),
        (|home| home.join("main"), true),
        (|home| home.join(".part-main"), true),
        (|home| home.join(".lock"), false),
        (|home| home.join("main/config.json"), false),
        (|home| home.join("main/.pulled.json"), false),
        (|home| home.join(".part-main/.pulled.json"), false),
    ];
    for (place, is_folder) in places {
        std::fs::write(&victim, "mine").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let link = place(&home(dir.path()));
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        let target = if is_folder { elsewhere.path() } else { &victim };
        symlink(target, &link).unwrap();
        let error = pull_from(&server, dir.path(), &model()).unwrap_err();
        let message = error.to_string();
        assert!(
            error.is_refusal() && message.contains("a symbolic link"),
            "{message}"
        );
        assert!(message.contains(link.to_str().unwrap()), "{message}");
        assert_eq!(super::names(elsewhere.path()), ["victim"]);
        assert_eq!(std::fs::read(&victim).unwrap(), b"mine");
    }
    // The cache itself may lie on another disk.
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("models");
    symlink(elsewhere.path(), &cache).unwrap();
    pull_from(&server, &cache, &model()).unwrap();
    // A link that replaces a file later is refused as well.
    let weights = model().folder(&cache).join("model.safetensors");
    std::fs::remove_file(&weights).unwrap();
    symlink(&victim, &weights).unwrap();
    let error = model().cached(&cache).unwrap_err();
    assert!(error.to_string().contains("a symbolic link"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_part_is_a_file_of_its_own() {
    let server = HubServer::new(tiny());
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "mine").unwrap();
    let staging = model().home(dir.path()).join(".part-main");
    std::fs::create_dir_all(&staging).unwrap();
    let reply = Reply::file(
        &hub_server::Request {
            method: "GET".into(),
            path: String::new(),
            headers: Default::default(),
        },
        &tiny()["config.json"],
    );
    let etag = &reply
        .headers
        .iter()
        .find(|(name, _)| name == "ETag")
        .unwrap()
        .1;
    let part = staging.join(format!(".config.json.{}.part", etag.trim_matches('"')));
    std::os::unix::fs::symlink(&victim, part).unwrap();
    let error = pull_from(&server, dir.path(), &model()).unwrap_err();
    assert!(error.to_string().contains("a symbolic link"), "{error}");
    assert_eq!(std::fs::read(&victim).unwrap(), b"mine");
}
