//! From words to paths, without a network.

use super::*;

fn refusal(spec: &str, offline: bool) -> String {
    let error = resolve(spec, offline, &mut |_| ()).unwrap_err();
    assert!(error.is_refusal(), "{error}");
    error.to_string()
}

#[test]
fn an_existing_path_wins() {
    let dir = tempfile::tempdir().unwrap();
    let spec = dir.path().to_str().unwrap();
    assert_eq!(resolve(spec, true, &mut |_| ()).unwrap(), dir.path());
}

#[test]
fn other_words_are_refused_with_what_works() {
    for spec in ["smol", "", "no/such/folder", "models/x.gguf", "/nowhere"] {
        let message = refusal(spec, false);
        assert!(
            message.contains(&format!("{spec:?}")) && message.contains("smollm2-135m"),
            "{message}"
        );
    }
}

#[test]
fn revisions_are_for_the_hub() {
    let refusal = |spec: &str, revision: &str| {
        let error = resolve_at(spec, Some(revision), true, &mut |_| ()).unwrap_err();
        assert!(error.is_refusal(), "{error}");
        error.to_string()
    };
    for spec in [".", "smollm2-135m"] {
        assert!(refusal(spec, "v1").contains("revision is v1"));
    }
    assert!(refusal("org/name", "../x").contains("\"../x\""));
}

#[test]
fn offline_names_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let error = from_cache(dir.path(), &ALIASES[0], Some("--offline"), &mut |_| ()).unwrap_err();
    let message = error.to_string();
    assert!(error.is_refusal() && message.contains("polykv pull smollm2-135m"));
    assert!(message.contains(dir.path().to_str().unwrap()), "{message}");
    let repo = Repo::parse("org/name:x.gguf").unwrap().at("v1").unwrap();
    let error =
        repo_from_cache(dir.path(), &repo, Some("HF_HUB_OFFLINE"), &mut |_| ()).unwrap_err();
    let message = error.to_string();
    assert!(error.is_refusal() && message.contains("polykv pull org/name:x.gguf --revision v1"));
    assert!(message.contains("without HF_HUB_OFFLINE"), "{message}");
    let left = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 0, "{message}");
}

#[test]
fn a_cached_file_is_trusted_only_at_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let alias = Alias {
        bytes: 3,
        ..ALIASES[0]
    };
    let path = dir.path().join("SmolLM2-135M-Instruct.Q4_1.gguf");
    std::fs::write(&path, "abc").unwrap();
    assert_eq!(
        from_cache(dir.path(), &alias, Some("--offline"), &mut |_| ()).unwrap(),
        path
    );
    std::fs::write(&path, "ab").unwrap();
    assert!(from_cache(dir.path(), &alias, Some("--offline"), &mut |_| ()).is_err());
}

#[test]
fn a_built_in_model_is_verified_by_its_sum() {
    let dir = tempfile::tempdir().unwrap();
    let alias = Alias {
        bytes: 3,
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ..ALIASES[0]
    };
    let message = |part: &str| {
        let error = verify_in(dir.path(), &alias).unwrap_err();
        let message = error.to_string();
        assert!(error.is_refusal() && message.contains(part), "{message}");
        assert!(message.contains("polykv pull smollm2-135m"), "{message}");
    };
    message("not in the cache");
    let path = dir.path().join(alias.file);
    std::fs::write(&path, "abd").unwrap();
    message("sha256 is");
    std::fs::write(&path, "abc").unwrap();
    assert_eq!(verify_in(dir.path(), &alias).unwrap(), path);
}

#[test]
fn the_cache_folder_follows_the_environment() {
    let dir = |set: &[(&str, &str)]| {
        let found = |name: &str| set.iter().find(|(key, _)| *key == name);
        cache_dir_from(|name| found(name).map(|(_, value)| (*value).into()))
    };
    let home = ("HOME", "/h");
    let xdg = ("XDG_CACHE_HOME", "/x");
    for (set, expected) in [
        (&[home][..], "/h/.cache/polykv/models"),
        (&[home, xdg], "/x/polykv/models"),
        (&[home, ("XDG_CACHE_HOME", "x")], "/h/.cache/polykv/models"),
        (&[home, xdg, ("POLYKV_CACHE", "/p")], "/p/models"),
        (&[home, ("POLYKV_CACHE", "")], "/h/.cache/polykv/models"),
    ] {
        assert_eq!(dir(set).unwrap(), Path::new(expected));
    }
    assert!(dir(&[]).unwrap_err().to_string().contains("POLYKV_CACHE"));
}

#[test]
fn the_table_is_well_formed() {
    let is_sum = |sum: &str| sum.len() == 64 && sum.chars().all(|c| c.is_ascii_hexdigit());
    for alias in ALIASES {
        assert!(is_sum(alias.sha256) && !alias.wheels.is_empty());
        for wheel in alias.wheels {
            assert!(is_sum(wheel.sha256));
            assert!(wheel.file.ends_with(".whl") && !wheel.file.contains('/'));
        }
        assert!(alias.bytes > 0 && alias.file.ends_with(".gguf"));
        assert!(!alias.name.contains('/') && !alias.file.contains('/'));
    }
}
