//! What stands under `--help` of each command: commands that work as they are, given the files they name.

pub const GENERATE: &str = "Examples:
  polykv generate -m smollm2-135m -p \"What is a cache?\"
  polykv generate -m smollm2-135m -f long.txt -p \"Who wrote it?\" --plan plans/smollm2-135m-12.5.yaml
  polykv generate -m model.gguf -f long.txt -p \"Go on.\" --policy snapkv:window=16 --budget 512 --save-session long.session
  polykv generate -m model.gguf -p \"And then?\" --session long.session";

pub const CHAT: &str = "Examples:
  polykv chat -m smollm2-135m --policy tova --budget 256
  polykv chat -m smollm2-135m --policy tova --budget 256 --system \"You are brief.\" --session talk.session";

#[cfg(feature = "serve")]
pub const SERVE: &str = "Examples:
  polykv serve -m smollm2-135m --plans plans/ --kv-memory 512MB
  polykv serve -m model.gguf --policy tova --budget 1024 --host 0.0.0.0 --api-key secret --sessions sessions/";

pub const EVAL: &str = "Examples:
  polykv eval -m smollm2-135m --task ppl --text book.txt --length 1024 --policy tova,snapkv:window=16 --budget-ratio 0.25
  polykv eval -m smollm2-135m --task needle --plan plans/smollm2-135m-12.5.yaml --policy tova --budget-ratio 0.125 --out results
  polykv eval merge results/shard-0 results/shard-1 --out results/all";

#[cfg(feature = "hub")]
pub const PULL: &str = "Examples:
  polykv pull
  polykv pull smollm2-135m
  polykv pull ORG/NAME:FILE.gguf --revision main";

pub const BENCH: &str = "Examples:
  polykv bench -m smollm2-135m -p 512 -n 128 -d 0,2048 --policy tova,h2o --budget 256
  polykv bench --random-weights llama-3.1-8b --device cuda --dtype bf16 --policy tova --budget 1024";

pub const CALIBRATE: &str = "Examples:
  polykv calibrate -m smollm2-135m --data texts/ --budget-ratio 0.25 --phase prefill --out found
  polykv calibrate -m smollm2-135m --data texts/ --objective both --allocator calibrated --budget-signal effect --refine 10 \\
      --phase prefill --budget-ratio 0.125 --policies h2o,tova,snapkv:window=16 --out found";

pub const PLAN: &str = "Examples:
  polykv plan show plans/smollm2-135m-12.5.yaml --out plan.svg
  polykv plan diff plans/smollm2-135m-25.yaml plans/smollm2-135m-12.5.yaml
  polykv plan shuffle plans/smollm2-135m-12.5.yaml --keep budgets --out shuffled.yaml
  polykv plan memory -m llama-3.1-8b -p 128000 --policy tova --budget 1024";

pub const COMPLETIONS: &str = "Examples:
  polykv completions bash > ~/.local/share/bash-completion/completions/polykv
  polykv completions zsh > ~/.zfunc/_polykv";
