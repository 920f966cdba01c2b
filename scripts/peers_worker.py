"""One measurement of scripts/peers in a process of its own: ACTION, then its settings as JSON. Answers in JSON."""

import importlib.metadata
import json
import os
import platform
import random
import sys
import time
from pathlib import Path


# Formats of files that are made from the model's own.
MADE = ("f32", "f16", "bf16")


def random_ids(count, vocab, seed):
    return random.Random(seed).choices(range(vocab), k=count)


def memory(_):
    """Reads a buffer of 1 GB, larger than any processor's cache, with one thread; the best of three."""
    import numpy

    buffer = numpy.ones(125_000_000)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        buffer.max()
        times.append(time.perf_counter() - started)
    return {"bytes_per_second": buffer.nbytes / min(times)}


def gguf_file(settings, form):
    """The model's own file, or the one that `prepare` made from it."""
    own = Path(settings["model"])
    if form in MADE:
        return Path(settings["folder"]) / f"{own.stem}.{form}.gguf"
    if form not in own.name.lower():
        sys.exit(f"llama.cpp:{form}: allowed are {', '.join(MADE)} and the format of {own.name}")
    return own


def convert(settings, form):
    """Writes the model's tensors in one of the formats that are made, with the file's metadata. Vectors stay F32, as llama.cpp
    wants them."""
    import gguf
    import numpy

    path = gguf_file(settings, form)
    if path.exists() or path == Path(settings["model"]):
        return
    reader = gguf.GGUFReader(settings["model"])
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        # The header's own counts, and what the writer puts in itself.
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = field.contents()
        if field.name == "general.file_type":
            value = int({"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16,
                         "bf16": gguf.LlamaFileType.MOSTLY_BF16}[form])
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kind = gguf.GGMLQuantizationType[form.upper() if len(tensor.shape) > 1 else "F32"]
        writer.add_tensor(tensor.name, gguf.quants.quantize(data.astype(numpy.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, path)


def hf_folder(settings):
    return Path(settings["folder"]) / f"{Path(settings['model']).stem}.hf"


def prepare(settings):
    """Makes the files that are missing. Answers with what is measured."""
    folder = Path(settings["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"machine": processor(), "model": Path(settings["model"]).stem}
    for form in settings["forms"]:
        convert(settings, form)
    if settings["forms"]:
        import xllamacpp

        params = xllamacpp.CommonParams()
        facts["xllamacpp"] = importlib.metadata.version("xllamacpp")
        flash = {-1: "auto", 0: "off", 1: "on"}[int(params.flash_attn_type)]
        flags = xllamacpp.get_system_info().split("|")
        built = " ".join(flag.split("=")[0].split(":")[-1].strip() for flag in flags if "= 1" in flag)
        facts["llama.cpp"] = f"(flash attention {flash}, batch {params.n_batch}/{params.n_ubatch}, f16 cache; {built})"
    if settings["transformers"]:
        import torch
        import transformers

        if not hf_folder(settings).exists():
            own = Path(settings["model"])
            model = transformers.AutoModelForCausalLM.from_pretrained(
                own.parent, gguf_file=own.name, dtype=torch.float32)
            part = hf_folder(settings).with_suffix(".part")
            model.save_pretrained(part)
            os.replace(part, hf_folder(settings))
        facts["transformers"] = transformers.__version__
        facts["torch"] = torch.__version__
    return facts


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def llama_cpp(settings):
    """llama.cpp's own server in this process, with its defaults but for the threads, the context and the prompt cache.

    By default the cache is f16, and flash attention is left to llama.cpp (auto).
    """
    import xllamacpp

    threads, steps = settings["threads"], settings["new_tokens"]
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf_file(settings, settings["form"]))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_ctx = max(8192, max(settings["lengths"]) + steps + 1)
    params.n_parallel = 1
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.verbosity = 0
    server = xllamacpp.Server(params)
    vocab = vocabulary(settings)

    def complete(length, steps):
        answer = server.handle_completions({
            "prompt": random_ids(length, vocab, length), "n_predict": steps + 1, "temperature": 0, "ignore_eos": True,
            "cache_prompt": False,
        })
        timings = answer["timings"]
        if timings["cache_n"] or timings["prompt_n"] != length or timings["predicted_n"] != steps + 1:
            sys.exit(f"llama.cpp did something else than it was asked for: {timings}")
        # The first token comes from the prompt's logits: its time is not part of predicted_ms.
        return {"prefill": length / timings["prompt_ms"] * 1e3, "decode": steps / timings["predicted_ms"] * 1e3}

    complete(32, 2)
    return {length: complete(length, steps) for length in settings["lengths"]}


def vocabulary(settings):
    import gguf

    return len(gguf.GGUFReader(settings["model"]).get_field("tokenizer.ggml.tokens").data)


def hugging_face(settings):
    """transformers' generation loop by hand: greedy, with its default attention and cache."""
    import torch
    import transformers

    if settings["form"] != "f32":
        sys.exit(f"transformers:{settings['form']}: allowed is f32")
    torch.set_num_threads(settings["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(hf_folder(settings), dtype=torch.float32).eval()

    @torch.inference_mode()
    def complete(length, steps):
        ids = torch.tensor([random_ids(length, model.config.vocab_size, length)])
        started = time.perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        int(token)
        first = time.perf_counter()
        for _ in range(steps):
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            int(token)
        return {"prefill": length / (first - started), "decode": steps / (time.perf_counter() - first)}

    complete(32, 2)
    return {length: complete(length, settings["new_tokens"]) for length in settings["lengths"]}


def file(settings):
    return str(gguf_file(settings, settings["form"]))


ACTIONS = {"memory": memory, "file": file, "prepare": prepare, "llama.cpp": llama_cpp, "transformers": hugging_face}

if __name__ == "__main__":
    print(json.dumps(ACTIONS[sys.argv[1]](json.loads(sys.argv[2]))), flush=True)
    # Servers have threads of their own, which need not be waited for.
    os._exit(0)
