//! One file from the hub into a folder: resumed where an earlier try ended, checked, and named only when it is whole.

use super::client::{Attempt, Client, Facts, Remote, Trouble, later};
use super::partial::Partial;
use super::record::{Entry, hex};
use super::{Step, content};
use polykv_core::{Error, Result};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use ureq::Body;
use ureq::http::{Response, StatusCode};

/// How often a lost connection is made up for before the user is asked to.
const REPEATS: u32 = 4;
const CHUNK: usize = 1 << 17;

/// Puts a file of at most `limit` bytes into `folder`; its size and sum.
///
/// # Errors
/// What [`Client::get`] reports; a file that is too large, takes too long, or is not what the hub or its name says it
/// is. What came of a file whose connection was lost stays in `folder` under another name. What cannot be written, as
/// on a full disk, does not.
pub(super) fn fetch(
    client: &Client,
    remote: Remote<'_>,
    limit: u64,
    folder: &Path,
    progress: &mut dyn FnMut(Step),
) -> Attempt<Entry> {
    let transfer = Transfer {
        client,
        remote,
        limit,
        start: Instant::now(),
    };
    let mut repeats = 0u32;
    loop {
        match transfer.attempt(folder, progress) {
            Err(Trouble::Lost(_)) if repeats < REPEATS => {
                let pause = client.pause.saturating_mul(2u32.saturating_pow(repeats));
                std::thread::sleep(pause);
                repeats = repeats.saturating_add(1);
            }
            result => return result,
        }
    }
}

/// Whether an answer goes on where `old` ends, with the same contents.
fn resumes(facts: &Facts, response: &Response<Body>, old: &Partial) -> bool {
    response.status() == StatusCode::PARTIAL_CONTENT
        && facts.etag.as_ref() == Some(&old.etag)
        && content_range(response)
            .is_some_and(|(start, total)| start == old.bytes && start <= total)
}

/// Start and total of `bytes START-END/TOTAL`.
fn content_range(response: &Response<Body>) -> Option<(u64, u64)> {
    let value = response.headers().get("content-range")?.to_str().ok()?;
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, total.parse().ok()?))
}

/// The size of the whole file, checked before anything of it is written. None where the end is marked by the
/// transfer itself, as servers do for texts that they make on the way.
fn size(
    remote: Remote<'_>,
    limit: u64,
    facts: &Facts,
    response: &Response<Body>,
) -> Result<Option<u64>> {
    let place = remote.place();
    let header = |name| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let announced = match response.status() {
        StatusCode::PARTIAL_CONTENT => content_range(response).map(|(_, total)| total),
        StatusCode::OK => header("content-length").and_then(|length| length.parse().ok()),
        status => return Err(Error::invalid(place, "answer of the hub", status, "200 OK")),
    };
    let chunked = header("transfer-encoding").is_some_and(|e| e.eq_ignore_ascii_case("chunked"));
    if announced.is_none() && !chunked {
        let allowed = "a number, to tell a whole file from a part";
        return Err(Error::invalid(place, "Content-Length", "missing", allowed));
    }
    if let (Some(announced), Some(size)) = (announced, facts.size)
        && announced != size
    {
        let allowed = format!("{size} bytes, as the hub says");
        return Err(Error::invalid(
            place,
            "size",
            format!("{announced} bytes"),
            allowed,
        ));
    }
    match announced.or(facts.size) {
        Some(total) if total > limit => Err(too_large(remote, format!("{total} bytes"), limit)),
        total => Ok(total),
    }
}

fn too_large(remote: Remote<'_>, found: String, limit: u64) -> Error {
    Error::invalid(
        remote.place(),
        "size",
        found,
        format!("at most {limit} bytes"),
    )
}

/// A file on its way.
struct Transfer<'a> {
    client: &'a Client,
    remote: Remote<'a>,
    /// Most bytes of the file.
    limit: u64,
    /// When the first try began.
    start: Instant,
}

impl Transfer<'_> {
    fn attempt(&self, folder: &Path, progress: &mut dyn FnMut(Step)) -> Attempt<Entry> {
        let (client, remote) = (self.client, self.remote);
        let old = Partial::find(folder, remote.file)?;
        let from = old.as_ref().map_or(0, |old| old.bytes);
        let (facts, response) = client.get(remote, from)?;
        if let Some(old) = old {
            if resumes(&facts, &response, &old) {
                return self.receive((facts, response), old, progress);
            }
            old.remove()?;
            if response.status() != StatusCode::OK {
                drop(response);
                let again = client.get(remote, 0)?;
                let new = Partial::new(folder, remote.file, again.0.etag.as_deref());
                return self.receive(again, new, progress);
            }
        }
        let new = Partial::new(folder, remote.file, facts.etag.as_deref());
        self.receive((facts, response), new, progress)
    }

    /// Writes what is left of a file to the end of `part`.
    fn receive(
        &self,
        (facts, response): (Facts, Response<Body>),
        part: Partial,
        progress: &mut dyn FnMut(Step),
    ) -> Attempt<Entry> {
        let remote = self.remote;
        let total = size(remote, self.limit, &facts, &response)?;
        let name: Arc<str> = remote.file.into();
        let mut hash = part.hash()?;
        let unwritten = |e| {
            // The error of the write says more than one of the removal would.
            let _ = part.remove();
            part.failed(e)
        };
        let mut file = part.open()?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; CHUNK];
        let mut done = part.bytes;
        loop {
            // The server may send more than it announced.
            let most = total.unwrap_or(self.limit);
            let lost = |why: &dyn std::fmt::Display| {
                let (place, later) = (remote.place(), later(remote.repo));
                let text =
                    format!("{place}: the connection ended after {done} bytes ({why}); {later}");
                Trouble::Lost(Error::Failed(text))
            };
            let count = body.read(&mut buffer).map_err(|e| lost(&e))?;
            if count == 0 {
                match total {
                    Some(total) if done < total => return Err(lost(&format!("of {total}"))),
                    _ => break,
                }
            }
            done = done.saturating_add(count as u64);
            if done > most {
                part.remove()?;
                return Err(too_large(remote, format!("{done} bytes or more"), most).into());
            }
            let bytes = buffer.get(..count).unwrap_or_default();
            hash.update(bytes);
            file.write_all(bytes).map_err(unwritten)?;
            progress(Step::File {
                name: name.clone(),
                done,
                total: total.unwrap_or(done),
            });
            self.check_time(done, total)?;
        }
        file.sync_all().map_err(unwritten)?;
        self.finish(&facts, hash, done, &part)
    }

    /// # Errors
    /// A file that is still on its way after its time: what came of it is kept for another try.
    fn check_time(&self, done: u64, total: Option<u64>) -> Attempt<()> {
        let limit = self.client.time_for(total.unwrap_or(done));
        if total == Some(done) || self.start.elapsed() <= limit {
            return Ok(());
        }
        let (place, later) = (self.remote.place(), later(self.remote.repo));
        Err(Trouble::Final(Error::Failed(format!(
            "{place}: only {done} bytes came within {} s, the limit for a file of this size; {later}",
            limit.as_secs_f32()
        ))))
    }

    /// Checks the contents and gives them their name.
    fn finish(&self, facts: &Facts, hash: Sha256, bytes: u64, part: &Partial) -> Attempt<Entry> {
        let place = self.remote.place();
        let sha256 = hex(hash);
        let checked = match &facts.sha256 {
            Some(expected) if !sha256.eq_ignore_ascii_case(expected) => {
                Err(Error::invalid(&place, "sha256", &sha256, expected))
            }
            _ => content::check(&place, self.remote.file, &part.path),
        };
        if let Err(error) = checked {
            part.remove()?;
            return Err(error.into());
        }
        part.finish()?;
        Ok(Entry { bytes, sha256 })
    }
}
