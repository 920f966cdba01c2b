//! One of PolyKV's models under a calibrated plan: `cargo run --release -p ten-lines -- "What is a KV cache?"`.

use polykv::models::generate::Event;
use polykv::models::{GenerateOptions, Generator, hub, load};
use polykv::{DeviceSpec, PlanFile, Registry};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let prompt = std::env::args().nth(1).unwrap_or("A KV cache is".into());
    let model = load(&hub::find("smollm2-135m")?, &DeviceSpec::Auto.open()?)?;
    let plan =
        PlanFile::read("plans/smollm2-135m-12.5.yaml".as_ref())?.build(&Registry::default())?;
    let ids = model.tokenizer.encode(&prompt, Default::default())?;
    let mut generator = Generator::new(model, plan)?;
    let answer = generator.generate(&ids, &GenerateOptions::default(), &mut |event| {
        if let Event::Text(text) = event {
            print!("{text}");
        }
    })?;
    println!(
        "\n{} of {} bytes",
        answer.cache.bytes, answer.cache.full_bytes
    );
    Ok(())
}
