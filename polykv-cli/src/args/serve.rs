//! What `polykv serve` takes.

use super::{CompressionArgs, ModelArgs, values};
use clap::Args;
use polykv::models::chat::Argument;
use std::net::IpAddr;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A variable for the model's chat template, such as enable_thinking=false: JSON or a text; may be repeated
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Model")]
    pub template_arg: Vec<Argument>,
    /// The plan of requests that name none
    #[command(flatten)]
    pub compression: CompressionArgs,
    /// A folder of plan files; requests name one by its file's name without the ending
    #[arg(long, value_name = "DIR", help_heading = "Compression")]
    pub plans: Option<PathBuf>,
    /// A folder that sessions are saved to and loaded from, when a client asks for it
    #[arg(long, value_name = "DIR", help_heading = "Server")]
    pub sessions: Option<PathBuf>,
    /// The most sessions that are held between requests
    #[arg(long, value_name = "N", default_value = "16", help_heading = "Server")]
    pub most_sessions: usize,
    /// Address to listen on; other machines reach no loopback address
    #[arg(
        long,
        value_name = "IP",
        default_value = "127.0.0.1",
        help_heading = "Server"
    )]
    pub host: IpAddr,
    /// Port to listen on, 0 for any that is free
    #[arg(
        long,
        value_name = "N",
        default_value = "8080",
        help_heading = "Server"
    )]
    pub port: u16,
    /// The name of the model in requests and answers [default: the one of --model]
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub model_name: Option<String>,
    /// Requests must bring this key; without it anybody who reaches the port is served
    #[arg(
        long,
        value_name = "KEY",
        env = "POLYKV_API_KEY",
        hide_env_values = true,
        value_parser = clap::builder::NonEmptyStringValueParser::new(),
        help_heading = "Server"
    )]
    pub api_key: Option<String>,
    /// The most memory of all caches with their statistics and prompts, such as 512MB or 4GiB; requests wait for it
    #[arg(long, value_name = "SIZE", value_parser = values::size, help_heading = "Server")]
    pub kv_memory: Option<u64>,
    /// The most requests that wait; others are told to come later
    #[arg(long, value_name = "N", default_value = "64", help_heading = "Server")]
    pub queue: usize,
    /// The most answers that are generated at a time
    #[arg(long, value_name = "N", default_value = "64", value_parser = values::at_least_one(), help_heading = "Server")]
    pub rows: usize,
    /// Tokens of a prompt that pass through a layer before everybody else gets a token
    #[arg(long, value_name = "N", default_value = "256", value_parser = values::at_least_one(), help_heading = "Server")]
    pub chunk: usize,
    /// Tokens of a chat's answer, if the request does not say how many
    #[arg(long, value_name = "N", default_value = "1024", value_parser = values::at_least_one(), help_heading = "Server")]
    pub max_new_tokens: usize,
    /// The most bytes of a request
    #[arg(long, value_name = "SIZE", default_value = "8MB", value_parser = values::size, help_heading = "Server")]
    pub max_body: u64,
    /// Seconds that answers may go on after Ctrl-C or a termination signal
    #[arg(long, value_name = "S", default_value = "30", help_heading = "Server")]
    pub grace: u64,
}
