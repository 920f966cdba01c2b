//! Connections that end, and what is made of the parts.

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
    assert!(model().cached(dir.path()).unwrap().is_none());
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
    for wrong in 0..5 {
        let content = weights();
        let server = HubServer::with(
            tiny(),
            counted(move |request, number| {
                let reply = Reply::file(request, &content);
                match (number, wrong) {
                    (0, _) => Some(reply.cut(CUT)),
                    (1, 0) => Some(reply.header("ETag", "\"other\"")),
                    (1, 1) => Some(reply.header("Content-Range", "bytes 0-9/10")),
                    (1, 2) => Some(Reply {
                        status: 416,
                        ..Reply::page()
                    }),
                    // A part that begins behind the end.
                    (1, 4) => Some(reply.header("Content-Range", format!("bytes {CUT}-{CUT}/9"))),
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
    let error = pull_from(&hub(false), dir.path(), &model()).unwrap_err();
    assert!(error.to_string().contains("403"), "{error}");
    assert!(!staged(dir.path()).is_empty());
    let server = hub(true);
    let path = pull_from(&server, dir.path(), &model()).unwrap();
    assert_eq!(ranges(&server), [range(CUT)]);
    assert!(server.take().contains(&"GET tokenizer.json".to_string()));
    let record = Record::read(&path.join(RECORD)).unwrap().unwrap();
    assert_eq!((record.commit, record.complete), (None, true));
}

/// A server that sends a little now and then is never silent, and never done.
#[test]
fn a_file_has_a_time_limit() {
    let content = weights();
    for chunked in [false, true] {
        let content = content.clone();
        let server = HubServer::with(
            tiny(),
            counted(move |request, number| {
                let reply = Reply::file(request, &content).drip(2000, Duration::from_millis(30));
                match (number, chunked) {
                    (0, false) => Some(reply),
                    (0, true) => {
                        let piece = [b"3e8\r\n", &content[..1000], b"\r\n"].concat();
                        let body = Reply::new(200, &piece.repeat(90));
                        let body = body.drip(piece.len(), Duration::from_millis(30));
                        Some(
                            body.without("Content-Length")
                                .header("Transfer-Encoding", "chunked"),
                        )
                    }
                    _ => None,
                }
            }),
        );
        let dir = tempfile::tempdir().unwrap();
        let mut client = Client::new(&server.url(), None, Duration::ZERO).unwrap();
        (client.patience, client.slowest) = (Duration::from_millis(300), u64::MAX);
        let error = pull(&client, dir.path(), &model(), &mut |_| ()).unwrap_err();
        let message = error.to_string();
        assert!(!error.is_refusal(), "{message}");
        for part in ["model.safetensors", "the limit", "polykv pull org/tiny"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        assert_eq!(ranges(&server), [None], "no repetition makes it longer");
        client.patience = Duration::from_secs(600);
        let path = pull(&client, dir.path(), &model(), &mut |_| ()).unwrap();
        assert_eq!(
            std::fs::read(path.join("model.safetensors")).unwrap(),
            weights()
        );
    }
}
