//! The `polykv` command with what PolyKV ships.

use polykv::Registry;
use std::process::ExitCode;

fn main() -> ExitCode {
    polykv_cli::main(Registry::default())
}
