//! `polykv calibrate`: from examples to a plan.

mod data;

use crate::args::{CalibrateArgs, Objective};
use crate::model;
use crate::output::{self, console, progress::Steps, write_whole};
use polykv::models::calibrate::{JournalOptions, Progress, Stage, calibrate, measure_part};
use polykv::models::digest;

/// # Errors
/// What was refused, or what failed on the way.
pub fn run(args: &CalibrateArgs) -> anyhow::Result<()> {
    // Whatever can be checked without the model comes before it is loaded.
    output::check_folder(&args.out)?;
    let mut options = args.options()?;
    let texts = match args.examples.objective {
        Objective::Evidence => Vec::new(),
        Objective::Text | Objective::Both => data::read(&args.examples.data)?,
    };
    let (device, path, model) = model::open(&args.model)?;
    options.journal = Some(JournalOptions {
        folder: args.out.clone(),
        resume: args.resume,
        parts: args.shards.clone(),
        weights: digest(&path)?,
        backend: device.backend().to_string(),
    });
    let mut bars = Bars(None);
    if let Some(shard) = args.shard {
        let part = (shard.index, shard.count);
        measure_part(&model, &texts, &options, part, &mut |step| bars.step(step))?;
        return Ok(());
    }
    let found = calibrate(&model, &texts, &options, &mut |step| bars.step(step))?;
    drop(bars);
    let json = found.report.to_json()?;
    write_whole(&args.out.join("profile.json"), format!("{json}\n"))?;
    found.file.write(&args.out.join("plan.yaml"))?;
    let shown = match args.json {
        true => json,
        false => {
            let cost = model.model.cache_cost(1);
            let resolved = found.plan.resolve(options.length, &cost)?;
            output::calibrate::table(&found.report, &found.file, &resolved)
        }
    };
    console::print(&shown)
}

/// The bar of the stage that is under way.
struct Bars(Option<(Stage, Steps)>);

impl Bars {
    fn step(
        &mut self,
        Progress {
            stage, done, of, ..
        }: Progress,
    ) {
        match &mut self.0 {
            Some((current, steps)) if *current == stage => steps.step(done, of),
            _ => {
                // The old bar goes before the new one comes.
                self.0 = None;
                let mut steps = Steps::new(stage.to_string(), stage.unit());
                steps.step(done, of);
                self.0 = Some((stage, steps));
            }
        }
    }
}
