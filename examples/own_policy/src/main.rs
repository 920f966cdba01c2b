//! The `polykv` command with one policy more. Everything that takes a policy's name takes it.
//!
//! ```sh
//! cargo run --release -p own-policy -- plan show examples/own_policy/plan.yaml
//! cargo run --release -p own-policy -- eval -m smollm2-135m --task needle --length 500 --limit 2 \
//!     --policy strided,tova --budget-ratio 0.25
//! ```

use std::process::ExitCode;

fn main() -> ExitCode {
    match own_policy::registry() {
        Ok(registry) => polykv_cli::main(registry),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
