//! Requests to the hub: one file at one revision, over redirects, with the token where it belongs.

use super::access::{self, Token};
use super::address::Address;
use super::repo::{Repo, segment};
use super::{content, mask};
use polykv_core::{Error, Result};
use std::time::Duration;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Agent, Body};

const MAX_REDIRECTS: usize = 5;
const CONNECT: Duration = Duration::from_secs(30);
/// How long a server may keep silent, before an answer or in the middle of it.
const SILENCE: Duration = Duration::from_secs(60);

/// What any file may take as a whole, and the slowest transfer beyond it, in bytes per second.
const PATIENCE: Duration = Duration::from_secs(600);
const SLOWEST: u64 = 50_000;

/// Why a file did not come.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The hub knows no such file.
    Missing(Error),
    /// A connection failed or ended early, or the server was busy: trying again may help.
    Lost(Error),
    /// Trying again will not help.
    Final(Error),
}

pub(super) type Attempt<T> = std::result::Result<T, Trouble>;

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        let (Trouble::Missing(error) | Trouble::Lost(error) | Trouble::Final(error)) = trouble;
        error
    }
}

/// What the hub says of a file before its contents. The first answer on the way counts, which is the hub's own.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub commit: Option<String>,
    /// Names these contents; letters and digits only.
    pub etag: Option<String>,
    pub sha256: Option<String>,
    pub size: Option<u64>,
}

impl Facts {
    fn add(&mut self, headers: &HeaderMap) {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let plain = |text: &str| -> String {
            let letters = text.chars().filter(char::is_ascii_alphanumeric);
            letters.take(64).collect()
        };
        let is_hex = |text: &String, length| {
            text.len() == length && text.chars().all(|c| c.is_ascii_hexdigit())
        };
        let commit = text("x-repo-commit").map(plain);
        let linked = text("x-linked-etag").map(plain);
        let etag = linked.clone().or_else(|| text("etag").map(plain));
        let size = text("x-linked-size").and_then(|size| size.parse().ok());
        self.commit = self.commit.take().or(commit.filter(|c| is_hex(c, 40)));
        // Of large files the hub's etag is the hash.
        self.sha256 = self.sha256.take().or(linked.filter(|e| is_hex(e, 64)));
        self.etag = self.etag.take().or(etag.filter(|e| !e.is_empty()));
        self.size = self.size.or(size);
    }
}

/// One file of a repository.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remote<'a> {
    pub repo: &'a Repo,
    /// The commit that the revision stands for, or the revision where that is not known.
    pub pin: &'a str,
    pub file: &'a str,
}

impl Remote<'_> {
    /// How errors call it.
    pub(super) fn place(&self) -> String {
        let (id, revision) = (self.repo.id(), self.repo.revision());
        format!("model {id}, revision {revision}, file {}", self.file)
    }
}

#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    origin: Address,
    token: Option<Token>,
    /// How long to wait before the first repetition.
    pub pause: Duration,
    /// What the smallest file may take.
    pub patience: Duration,
    /// Bytes per second for which a larger file has more time.
    pub slowest: u64,
}

impl Client {
    /// As the environment says.
    ///
    /// # Errors
    /// An endpoint or a token that is none.
    pub(super) fn from_env() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name);
        let token = Token::find(variable)?;
        Self::new(&access::endpoint(variable), token, Duration::from_secs(1))
    }

    pub(super) fn new(endpoint: &str, token: Option<Token>, pause: Duration) -> Result<Self> {
        let endpoint = endpoint.trim_end_matches('/');
        let origin = Address::parse("environment", "HF_ENDPOINT", endpoint)?;
        // A password with a slash looks like a path, and this address is part of messages.
        if endpoint.contains(['@', '?', '#']) {
            let allowed = "an address https://HOST/PATH without user name, query and fragment";
            let found = format!("{:?}", mask::address(endpoint));
            return Err(Error::invalid("environment", "HF_ENDPOINT", found, allowed));
        }
        let mut config = Agent::config_builder()
            .user_agent(concat!("polykv/", env!("CARGO_PKG_VERSION")))
            // Sizes and ranges count the bytes of the file, not of a compressed form.
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE));
        if origin.is_loopback() {
            // A proxy would look on its own machine.
            config = config.proxy(None);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            endpoint: endpoint.to_string(),
            origin,
            token,
            pause,
            patience: PATIENCE,
            slowest: SLOWEST,
        })
    }

    /// How long a file of so many bytes may take, with all repetitions.
    pub(super) fn time_for(&self, bytes: u64) -> Duration {
        let seconds = bytes.checked_div(self.slowest).unwrap_or(0);
        self.patience.saturating_add(Duration::from_secs(seconds))
    }

    /// What the hub says of a file, without its contents.
    ///
    /// # Errors
    /// What [`Client::get`] reports.
    pub(super) fn head(&self, remote: Remote<'_>) -> Attempt<Facts> {
        self.send(remote, None).map(|(facts, _)| facts)
    }

    /// A file from byte `from` on, if the server can do that: the status tells.
    ///
    /// # Errors
    /// [`Trouble::Missing`] for status 404, [`Trouble::Lost`] without a connection and for a busy server, all else is
    /// final.
    pub(super) fn get(&self, remote: Remote<'_>, from: u64) -> Attempt<(Facts, Response<Body>)> {
        self.send(remote, Some(from))
    }

    fn send(&self, remote: Remote<'_>, from: Option<u64>) -> Attempt<(Facts, Response<Body>)> {
        let place = remote.place();
        let path = format!(
            "{}/resolve/{}/{}",
            remote.repo.id(),
            segment(remote.pin),
            remote.file
        );
        let url = format!("{}/{path}", self.endpoint);
        let mut address = Address::parse(&place, "address", &url)?;
        let mut facts = Facts::default();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(&address, from).map_err(|e| {
                let (e, later) = (mask::addresses(&e.to_string()), later(remote.repo));
                let text = format!("{place}: {}: {e}; {later}", self.endpoint);
                Trouble::Lost(Error::Failed(text))
            })?;
            facts.add(response.headers());
            let status = response.status();
            if !status.is_redirection() {
                return match status {
                    StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                        self.refuse_page(&place, &response)?;
                        Ok((facts, response))
                    }
                    StatusCode::RANGE_NOT_SATISFIABLE => Ok((facts, response)),
                    _ => Err(self.refusal(remote, &response)),
                };
            }
            let location = response.headers().get("location");
            let location = location.and_then(|value| value.to_str().ok());
            address = address.redirect(&place, location.unwrap_or_default())?;
            // Where large files are stored, only their contents may be asked for.
            if from.is_none() && !address.same_origin(&self.origin) {
                return Ok((facts, response));
            }
        }
        let found = format!("more than {MAX_REDIRECTS}");
        let allowed = format!("at most {MAX_REDIRECTS}");
        Err(Error::invalid(place, "redirects", found, allowed).into())
    }

    /// # Errors
    /// A page where a file should be: no file of a model is one.
    fn refuse_page(&self, place: &str, response: &Response<Body>) -> Result<()> {
        let header = response.headers().get("content-type");
        let text = header
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let kind = text.split(';').next().unwrap_or_default().trim();
        match kind.eq_ignore_ascii_case("text/html") {
            true => {
                let field = format!("answer of {}", self.endpoint);
                let found = "a web page (text/html)";
                Err(Error::invalid(place, field, found, content::PAGE_ADVICE))
            }
            false => Ok(()),
        }
    }

    fn request(
        &self,
        address: &Address,
        from: Option<u64>,
    ) -> std::result::Result<Response<Body>, ureq::Error> {
        let url = address.to_string();
        let mut request = match from {
            Some(_) => self.agent.get(url),
            None => self.agent.head(url),
        };
        if let Some(from) = from.filter(|from| *from > 0) {
            request = request.header("range", format!("bytes={from}-"));
        }
        // The token is the hub's alone.
        if let Some(token) = &self.token
            && self.is_private()
            && address.same_origin(&self.origin)
        {
            request = request.header("authorization", token.header());
        }
        request.call()
    }

    /// Whether nobody can listen on the way to the hub.
    fn is_private(&self) -> bool {
        self.origin.is_https() || self.origin.is_loopback()
    }

    fn refusal(&self, remote: Remote<'_>, response: &Response<Body>) -> Trouble {
        let status = response.status();
        let code = response.headers().get("x-error-code");
        let code = code.and_then(|value| value.to_str().ok());
        // A word of the hub such as GatedRepo; anything longer is not for a line of ours.
        let code = code.filter(|c| c.len() <= 40 && c.chars().all(|c| c.is_ascii_alphanumeric()));
        let found = match code {
            Some(code) => format!("{status} ({code})"),
            None => status.to_string(),
        };
        let (place, field) = (remote.place(), format!("answer of {}", self.endpoint));
        let refused = |allowed: &str| Error::invalid(&place, &field, &found, allowed);
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let token = match self.token {
                    Some(_) if !self.is_private() => {
                        "the token found here goes over https only, which HF_ENDPOINT is not"
                    }
                    Some(_) => "the token found here is not enough",
                    None => "set HF_TOKEN or run `hf auth login`: no token was found here",
                };
                Trouble::Final(refused(&format!(
                    "a repository that exists and that you may read (check the name; for a gated or private one, \
                     accept its terms on the hub; {token})"
                )))
            }
            StatusCode::NOT_FOUND => Trouble::Missing(refused(
                "a repository, revision and file that exist (check the three on the hub, and that no local path was \
                 meant)",
            )),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                self.busy(remote, &found)
            }
            _ if status.is_server_error() => self.busy(remote, &found),
            _ => Trouble::Final(refused("200, 206")),
        }
    }

    fn busy(&self, remote: Remote<'_>, found: &str) -> Trouble {
        let (place, later) = (remote.place(), later(remote.repo));
        Trouble::Lost(Error::Failed(format!(
            "{place}: {} answers {found}; {later}",
            self.endpoint
        )))
    }
}

/// What to do about a lost connection.
pub(super) fn later(repo: &Repo) -> String {
    format!(
        "run `{}` again later, it goes on where it was",
        repo.command()
    )
}
