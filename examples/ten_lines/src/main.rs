//! One of PolyKV's models answers a question about a long text under a calibrated plan, in ten lines.
//!
//! ```sh
//! cargo run --release -p ten-lines -- "What is the password that opens the emergency locker?"
//! ```

use polykv::models::generate::Event;
use polykv::models::{GenerateOptions, Generator, hub, load};
use polykv::{DeviceSpec, PlanFile, Registry};
use std::ops::ControlFlow;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let question = std::env::args().nth(1).unwrap_or("Who lives here?".into());
    let text = include_str!("../../handbook.txt");
    let folder = hub::resolve("smollm2-135m", false, &mut |_| ())?;
    let model = load(&folder, &DeviceSpec::Auto.open()?)?;
    let plan = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../plans/smollm2-135m-12.5.yaml"
    );
    let plan = PlanFile::read(plan.as_ref())?.build(&Registry::default())?;
    let prompt = model.prompt(&format!("{text}\n\n{question}"))?;
    let mut generator = Generator::new(model, plan)?;
    let answer = generator.generate(&prompt, &GenerateOptions::default(), &mut |event| {
        if let Event::Text(text) = event {
            print!("{text}");
        }
        ControlFlow::Continue(())
    })?;
    println!(
        "\n{} of {} bytes",
        answer.cache.bytes, answer.cache.full_bytes
    );
    Ok(())
}
