#!/usr/bin/env python3
"""Writes the inputs that fuzzing starts from: fuzz/seeds.py [FOLDER]. All are made here: nothing is taken from anywhere.

FOLDER (fuzz/seeds if not given) gets one folder per target, and a NAME.dict for each with the words of its seeds.
"""

import json
import random
import re
import struct
import sys
from pathlib import Path


def pieces(*parts):
    """Several files as one input: before each but the last its length in two bytes."""
    parts = [part if isinstance(part, bytes) else part.encode() for part in parts]
    lead = b"".join(struct.pack("<H", len(part)) + part for part in parts[:-1])
    return lead + parts[-1]


def tensors_file(tensors, metadata=None):
    """A safetensors file of {name: (dtype, shape, bytes)}."""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


# GGUF: metadata values are (type, value); lists are (9, type of items, items).
U32, I32, F32, BOOL, TEXT, LIST, U64 = 4, 5, 6, 7, 8, 9, 10
FORMS = {U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q"}


def text(value):
    value = value.encode()
    return struct.pack("<Q", len(value)) + value


def value(kind, content, *rest):
    if kind == TEXT:
        return text(content)
    if kind == LIST:
        (items,) = rest
        return struct.pack("<IQ", content, len(items)) + b"".join(value(content, item) for item in items)
    return struct.pack(FORMS[kind], content)


def gguf_file(values, tensors, alignment=32):
    """`tensors` are (name, row-major shape, type, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for key, (kind, *content) in values.items():
        out += text(key) + struct.pack("<I", kind) + value(kind, *content)
    data = b""
    for name, shape, kind, content in tensors:
        data += bytes(-len(data) % alignment)
        out += text(name) + struct.pack("<I", len(shape))
        out += b"".join(struct.pack("<Q", dim) for dim in reversed(shape))
        out += struct.pack("<IQ", kind, len(data))
        data += content
    return out + bytes(-len(out) % alignment) + data


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def gguf_seeds():
    tokens = ["a", "b", "c", "ab", "\u0120", "<|im_start|>", "<|im_end|>", "<x>"]
    values = {
        "general.architecture": (TEXT, "llama"),
        "general.alignment": (U32, 32),
        "llama.block_count": (U32, 1),
        "llama.context_length": (U32, 64),
        "llama.embedding_length": (U32, 8),
        "llama.feed_forward_length": (U32, 16),
        "llama.attention.head_count": (U32, 2),
        "llama.attention.head_count_kv": (U32, 1),
        "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "llama.rope.dimension_count": (U32, 4),
        "llama.rope.freq_base": (F32, 10000.0),
        "llama.vocab_size": (U64, len(tokens)),
        "tokenizer.ggml.model": (TEXT, "gpt2"),
        "tokenizer.ggml.pre": (TEXT, "smollm"),
        "tokenizer.ggml.tokens": (LIST, TEXT, tokens),
        "tokenizer.ggml.token_type": (LIST, I32, [1, 1, 1, 1, 1, 3, 3, 4]),
        "tokenizer.ggml.merges": (LIST, TEXT, ["a b"]),
        "tokenizer.ggml.bos_token_id": (U32, 5),
        "tokenizer.ggml.eos_token_id": (U32, 6),
        "tokenizer.ggml.add_bos_token": (BOOL, True),
        "tokenizer.chat_template": (TEXT, CHATML),
    }

    def floats(count):
        return struct.pack(f"<{count}f", *(i / 8 for i in range(count)))

    tensors = [
        ("token_embd.weight", [8, 8], 0, floats(64)),
        ("output_norm.weight", [8], 0, floats(8)),
        ("blk.0.attn_q.weight", [8, 8], 1, bytes(128)),
        ("blk.0.attn_k.weight", [4, 8], 0, floats(32)),
    ]
    yield "llama", gguf_file(values, tensors)
    qwen = {key.replace("llama.", "qwen3."): content for key, content in values.items()}
    qwen |= {"general.architecture": (TEXT, "qwen3"), "tokenizer.ggml.pre": (TEXT, "qwen2")}
    qwen |= {"qwen3.attention.key_length": (U32, 4), "qwen3.attention.value_length": (U32, 4)}
    qwen |= {"qwen3.rope.scaling.type": (TEXT, "yarn"), "qwen3.rope.scaling.factor": (F32, 4.0)}
    qwen |= {"qwen3.rope.scaling.original_context_length": (U32, 16)}
    yield "qwen3", gguf_file(qwen, [("token_embd.weight", [8, 8], 0, floats(64))])
    plain = {"general.architecture": (TEXT, "llama"), "split.count": (U32, 2), "split.no": (U32, 0)}
    yield "part", gguf_file(plain, [])
    values |= {"tokenizer.ggml.pre": (TEXT, "llama-bpe"), "tokenizer.ggml.padding_token_id": (U32, 7)}
    freqs = [("rope_freqs.weight", [2], 0, struct.pack("<2f", 1.0, 8.0))]
    yield "freqs", gguf_file(values, tensors[:2] + freqs)
    # One tensor of every number format, a block of each.
    blocks = {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 10: 84, 11: 110, 12: 144, 13: 176, 14: 210, 30: 64}
    kinds = [(f"blk.{i}.attn_q.weight", [32 if kind in (2, 3, 6, 7, 8, 30) else 256], kind, bytes(range(size)))
             for i, (kind, size) in enumerate(blocks.items())]
    yield "kinds", gguf_file(values, tensors[:1] + kinds)


def config_seeds():
    llama = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "bos_token_id": 1,
        "eos_token_id": [0, 2], "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }
    yield "llama", json.dumps(llama)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}
    yield "llama3", json.dumps(llama | {"rope_scaling": scaling, "head_dim": 16})
    qwen = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32, "sliding_window": None,
            "use_sliding_window": False, "max_window_layers": 3, "eos_token_id": 2}
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 32, "beta_slow": 1,
            "mscale": 1.0, "mscale_all_dim": 0.5, "attention_factor": 1.1, "truncate": False}
    yield "qwen3", json.dumps(llama | qwen | {"rope_scaling": yarn})
    new = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6, "partial_rotary_factor": 1.0}
    yield "parameters", json.dumps({key: v for key, v in (llama | {"rope_parameters": new}).items() if key != "rope_theta"})
    kinds = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    layers = {"rope_parameters": kinds, "layer_types": ["full_attention"] * 3}
    yield "kinds", json.dumps(llama | layers)


def hub_seeds():
    commit = "0123456789abcdef0123456789abcdef01234567"
    border = b"\n%%%\n"

    def answer(status, body=b"", **headers):
        body = body if isinstance(body, bytes) else body.encode()
        lines = [f"HTTP/1.1 {status}"] + [f"{key.replace('_', '-')}: {v}" for key, v in headers.items()]
        if "Content_Length" not in headers:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join(lines + ["", ""]).encode() + body

    facts = {"X_Repo_Commit": commit, "ETag": '"0a1b"'}
    missing = answer("404 Not Found", X_Error_Code="EntryNotFound")
    weights = tensors_file({"a": ("F32", [2], bytes(8))})
    head = answer("200 OK", "", **facts, Content_Length=2)
    model = [head] + [answer("200 OK", "{}", **facts)] * 2 + [missing] * 3 + [answer("200 OK", weights, **facts)]
    file = [head, answer("200 OK", "GGUF....", **facts)]
    yield "model", pieces("", "", border.join(model + file))
    index = json.dumps({"metadata": {"total_size": 8}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    listed = model[:-1] + [missing, answer("200 OK", index, **facts)] + [answer("200 OK", weights, **facts)] * 2
    yield "shards", pieces("", "", border.join(listed))
    there = answer("302 Found", Location="http://127.0.0.1:%PORT%/blob?sig=1", X_Linked_Size=2,
                   X_Linked_Etag='"' + "0" * 64 + '"', X_Repo_Commit=commit)
    yield "redirect", pieces("", "", border.join([there, head, there, answer("200 OK", "{}", **facts)]))
    away = answer("302 Found", Location="//example.invalid/x", X_Repo_Commit=commit)
    yield "away", pieces("", "", border.join([away, away]))
    loop = answer("307 Temporary Redirect", Location="/again")
    yield "loop", pieces("", "", border.join([loop] * 8))
    page = answer("200 OK", "<!DOCTYPE html><title>Sign in</title>", Content_Type="text/html; charset=utf-8")
    yield "page", pieces("", "", border.join([page, page]))
    gated = answer("401 Unauthorized", X_Error_Code="GatedRepo")
    yield "gated", pieces("", "", border.join([gated, answer("429 Too Many Requests"), answer("503 Busy")]))
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    yield "chunked", pieces("", "", border.join([head, chunked]))
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nETag: \"0a1b\"\r\n\r\n{\"a\""
    rest = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 4-8/9\r\nContent-Length: 5\r\nETag: \"0a1b\"\r\n\r\n: 1}\n"
    yield "resumed", pieces("", "", border.join([head, cut, rest]))
    sums = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    record = {"commit": commit, "complete": True, "files": {"config.json": {"bytes": 2, "sha256": sums}}}
    yield "recorded", pieces(json.dumps(record), "{}", border.join([head]))
    yield "recorded-anew", pieces(json.dumps(record | {"commit": "f" * 40}), "{}", border.join(model))


def journal_seeds():
    def measured(example, data, prompt, scored):
        phase = {"cosine": [[0.5, 0.25]] * 2, "nll": [[1.5, 2.0]] * 2}
        signals = {"data": data, "prompt_tokens": prompt, "scored_tokens": scored, "full_nll": 7.5, "entropy": [2.0, 1.0],
                   "prefill": phase, "decode": phase}
        return json.dumps({"measured": {"example": example, "signals": signals}})

    header = json.dumps({"version": "0.2.0", "fingerprint": "x", "policies": ["snapkv", "h2o"]})
    losses = json.dumps({"losses": {"plan": "0123456789abcdef", "losses": {"text": [0.5], "evidence": [0.25]}}})
    lines = [header, measured(0, "text", 8, 3), measured(1, "evidence", 6, 3), losses]
    yield "whole", "\n".join(lines) + "\n"
    yield "raw", "!" + lines[0][:-1] + ',"checksum":"0123456789abcdef"}\n'


PLANS = {
    "uniform": "schema: 1\nlayers: 4\nbudget: {ratio: 0.25}\nprefill:\n  - {layers: 0-3, policy: snapkv}\n"
    "decode:\n  - {layers: 0-3, policy: tova}\n",
    "tokens": "schema: 1\nname: x\nmodel: llama-2x4q2kv16d-64h-320v\nlayers: 2\nbudget: {tokens: 64}\nprefill:\n"
    "  - {layers: 0, policy: h2o, tokens: 32}\n  - {layers: 1, policy: streaming-llm, params: {sinks: 4}, tokens: 96}\n",
    "mixed": "schema: 1\nlayers: 3\nbudget: {total: 200}\nallow_full_extra: true\nprefill:\n"
    "  - {layers: 0, policy: full}\n  - {layers: 1-2, policy: blend, share: 2.5, params: {policies: [{policy: keydiff},"
    " {policy: tova, share: 3}, {policy: h2o, recent_fraction: 0.5}]}}\n",
    "online": "schema: 1\nlayers: 3\nbudget: {bytes: 1048576}\nonline: cake\nprefill:\n  - {layers: 0-2, policy: cake, params:"
    " {window: 4, kernel: 3, gamma: 5.0}}\ndecode:\n  - {layers: 0-2, policy: cake}\n",
    "others": "schema: 1\nlayers: 9\nbudget: {tokens: 128}\nonline: pyramid\nprefill:\n"
    "  - {layers: 0, policy: d2o, params: {sinks: 2, recent_fraction: 0.25, ema: 0.8}}\n"
    "  - {layers: 1, policy: cam, params: {window: 3, sinks: 2, seed: 5}}\n"
    "  - {layers: 2, policy: criticalkv, params: {base: {policy: snapkv, window: 4, kernel: 3}, first: 0.3}}\n"
    "  - {layers: 3, policy: expected-attention, params: {future: 7, sinks: 2, epsilon: 0.0}}\n"
    "  - {layers: 4, policy: lagkv, params: {lag: 3, sinks: 2}}\n"
    "  - {layers: 5, policy: scissorhands, params: {history: 9, recent: 3}}\n"
    "  - {layers: 6, policy: snapkv, params: {window: 5, kernel: 5, pool: avg}}\n"
    "  - {layers: 7, policy: knorm}\n  - {layers: 8, policy: random, params: {seed: 9}}\n",
    "dynamic": "schema: 1\nlayers: 2\nbudget: {ratio: 1}\nonline: dynamic\nprefill: [{layers: 0-1, policy: pyramidkv}]\n",
}


def plan_in_json(name):
    rules = [{"layers": "0-1", "policy": name}]
    return {"schema": 1, "layers": 2, "budget": {"ratio": 0.25}, "prefill": rules, "decode": rules}


def profile_seeds():
    table = {"cosine": [[0.5, 0.25], [0.75, 0.5]], "delta_ppl": [[1.0, 2.0], [0.5, 0.0]]}
    profile = {"examples": 2, "perplexity": 9.5, "entropy": [1.0, 2.0], "prefill": table, "decode": table}
    phase = {"route": [0, 1], "budgets": [3, 5]}
    report = {
        "schema": 1, "version": "0.2.0", "model": "x", "layers": 2, "budget": {"ratio": 0.25},
        "settings": {"length": 16, "continuation": 4, "question_after": False, "seed": 0, "signal": "cosine",
                     "route": "forward", "allocator": "uniform", "refine": 0},
        "candidates": [{"policy": "snapkv"}, {"policy": "h2o", "params": {"normalize": True}}],
        "profiles": {"text": profile, "evidence": profile}, "prefill": phase, "decode": phase, "plan_hash": "",
    }
    yield "both", json.dumps(report)
    settings = report["settings"] | {"signal": "ppl", "budget_signal": "entropy", "allocator": "calibrated"}
    yield "ppl", json.dumps(report | {"settings": settings, "profiles": {"text": profile}})


def run_seeds():
    plans = [
        {"name": "full", "hash": "0", "single": False, "budget": None, "plan": plan_in_json("full")},
        {"name": "x", "hash": "1", "single": True, "budget": {"ratio": 0.25}, "plan": plan_in_json("snapkv")},
    ]

    def record(**more):
        return json.dumps({
            "polykv": "0.2.0", "task": "needle", "settings": {"limit": 2}, "seed": 1, "model_sha256": "b1" * 32,
            "model_shape": "llama-2x4q2kv16d-64h-320v", "backend": "cpu", "dtype": "f32", "plans": plans, "samples": 2,
            "questions": "0", "model": "m", "device": "cpu", "protocol": "p", "sets": [["all", ["needle", "ppl"]]],
            "commands": ["polykv eval"], "sessions": [{"started": "2026-01-01T00:00:00Z", "seconds": 1.5, "samples": 2,
                                                       "prompt_tokens": 9, "new_tokens": 7}],
        } | more)

    def lines(*samples, task="needle", metric="exact"):
        out = []
        for sample in samples:
            for index, plan in enumerate(["full", "x"]):
                scores = {"exact": 1.0 - index / 2, "nll": 0.5 + sample, "kept": 40.0, "kv_bytes": 1000.0, "kl": 0.1}
                out.append(json.dumps({
                    "task": task, "metric": metric, "sample": sample, "id": f"n#{sample}", "plan": plan, "length": 64,
                    "prompt_tokens": 60, "depth": 0.5, "truncated": index == 1, "scores": scores, "new_tokens": 3,
                    "output": "It is 7.", "answers": ["7"]}))
        return "\n".join(out) + "\n"

    yield "whole", pieces(record(), lines(0, 1), "", "")
    yield "halves", pieces(record(shard="0/2"), lines(0), record(shard="1/2"), lines(1))
    ppl = lines(0, 1, task="ppl", metric="perplexity")
    yield "ppl", pieces(record(task="ppl"), ppl, "", "")


def safetensors_seeds():
    yield "three", tensors_file(
        {"a.weight": ("F32", [2, 3], bytes(24)), "b": ("BF16", [4], bytes(8)), "c": ("F16", [1, 1], bytes(2))},
        {"format": "pt"})
    yield "empty", tensors_file({"a": ("F32", [0, 4], b"")})


def sample_seeds():
    line = {"p": "Read this.", "a": ["x", 3], "q": "Which?", "r": "It is", "t": "hotpotqa", "c": ["x", "3"]}
    for which in range(0, 24, 3):
        yield f"prompts-{which}", bytes([which * 4]) + json.dumps(line).encode() + b"\n"
        yield f"mapped-{which}", bytes([which * 4 + 4]) + json.dumps(line).encode() + b"\n"
    bench = {"input": "Which?", "context": "the lamp", "answers": ["lamp"], "length": 2, "dataset": "x", "language": "en",
             "all_classes": None, "_id": "x"}
    for task, answers in enumerate([["lamp"], ["lamp"], ["3"], ["Paragraph 3"], ["\u6bb5\u843d3"], ["x = 1"]]):
        classes = ["lamp", "x"] if task == 1 else None
        text = json.dumps(bench | {"answers": answers, "all_classes": classes})
        yield f"bench-{task}", bytes([task * 4 + 1]) + text.encode()
    prompts, limits = '{"hotpotqa": "Read.\\n{context}\\nAsk: {input}\\nSay:"}', '{"hotpotqa": 32}'
    yield "files", b"\x02" + pieces(prompts, limits, json.dumps(bench))
    for metric, (answer, truth) in enumerate([
            ("the lamp is on", "a lamp"), ("\u706f\u4eae\u7740", "\u706f"), ("the lamp is on", "lamp on"),
            ("\u706f\u4eae\u7740", "\u4eae\u7740"), ("it is a lamp", "lamp"), ("x = a + 1\n# y", "x = a + 2"),
            ("Paragraph 3, 4", "Paragraph 3"), ("\u6bb5\u843d3", "\u6bb5\u843d3"), ("3 or 4", "3"), ("The lamp.", "lamp"),
            ("a lamp", "lamp"), ("a lamp", "lamp")]):
        yield f"score-{metric}", bytes([metric * 4 + 3]) + pieces(answer, truth)


def shards_seeds():
    index = json.dumps({"metadata": {"total_size": 16}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    yield "two", pieces(index, tensors_file({"a": ("F32", [2], bytes(8))}), tensors_file({"b": ("BF16", [4], bytes(8))}))


TEMPLATES = {
    "chatml": CHATML,
    "blocks": "{%- set ns = namespace(n=0, found=false) -%}{%- for m in messages if m.role != 'system' -%}{%- if loop.first"
    " and m.content is string -%}{% set ns.n = ns.n + 1 %}{{ m.content | trim | upper }}{%- elif loop.last -%}"
    "{{ m['content'].split('\\n')[-1][:5] ~ loop.index0 }}{%- else -%}{{ m | tojson(indent=2) }}{%- endif -%}"
    "{%- endfor -%}{{ bos_token }}{{ ns.n }}",
    "macros": "{% macro turn(m, sep='|') %}{{ m.role }}{{ sep }}{{ m.content | replace('a', 'b') | length }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}{{ range(3) | list | join(',') }}{{ {'a': [1, 2.5, none]} | tojson }}",
    "refuses": "{% if messages[0].role == 'system' %}{{ raise_exception('no system ' + messages[0].role) }}{% endif %}"
    "{% generation %}{{ '%s-%d' | format('x', 3) }}{% endgeneration %}{{ strftime_now('%Y') }}",
    "filters": "{{ messages | map(attribute='role') | unique | sort | join(' ') }}{{ messages | selectattr('role', 'equalto',"
    " 'user') | list | length }}{{ 'a b c' | wordcount }}{{ 'abc' | truncate(2) }}{{ 'a.b'.partition('.') }}{{ 7 // 2 ** 2 % 3 }}"
    "{{ messages[0].content.startswith('B') and not messages[-1]['content'] }}{{ [1, 2] + [3] }}{{ 'x' in 'xyz' }}",
    "loops": "{% for i in range(9) recursive %}{% for j in range(i) %}{% if j == 4 %}{% break %}{% endif %}{{ i * j }}"
    "{% endfor %}{% endfor %}{% filter upper %}a{% endfilter %}{% set x %}b{% endset %}{{ x }}{% raw %}{{ y }}{% endraw %}{# c #}",
}


def tokenizer_seeds():
    def added(ident, content, special=True):
        return {"id": ident, "content": content, "special": special, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False}

    def bpe(vocab, merges, **more):
        return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                "vocab": vocab, "merges": merges} | more

    def whole(model, **more):
        return json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                           "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model} | more)

    letters = {letter: i for i, letter in enumerate("abcdehlox \u0120")}
    plain = letters | {"he": 11, "ll": 12, "hell": 13, "<s>": 14, "<|im_end|>": 15}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                         {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [14], "tokens": ["<s>"]}}}
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]}
    yield "level", whole(bpe(plain, [["h", "e"], ["l", "l"], ["he", "ll"]]), pre_tokenizer=digits, decoder=level,
                         added_tokens=[added(14, "<s>"), added(15, "<|im_end|>")], post_processor=template)
    fallback = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"\u2581a": 256, "\u2581": 257, "a": 258, "<unk>": 259}
    replace = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    steps = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    normal = [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]
    yield "fallback", whole(bpe(fallback, [["\u2581", "a"]], byte_fallback=True, unk_token="<unk>", fuse_unk=True),
                            normalizer={"type": "Sequence", "normalizers": normal},
                            decoder={"type": "Sequence", "decoders": steps}, added_tokens=[added(259, "<unk>")])
    split = {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\p{N}{1,3}|[^\\s\\p{L}]+|\\s+(?!\\S)|\\s+"},
             "behavior": "Isolated", "invert": False}
    yield "split", whole(bpe(letters, []), pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level | {"use_regex": False}]},
                         normalizer={"type": "NFC"}, decoder=level)
    pieces_ = {"[UNK]": 0, "a": 1, "##b": 2, "hello": 3, "[CLS]": 4, "[SEP]": 5}
    bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    yield "pieces", whole({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                           "max_input_chars_per_word": 100, "vocab": pieces_}, normalizer=bert,
                          pre_tokenizer={"type": "BertPreTokenizer"}, decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
                          post_processor={"type": "BertProcessing", "sep": ["[SEP]", 5], "cls": ["[CLS]", 4]})
    space = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    yield "unigram", whole({"type": "Unigram", "unk_id": 0, "byte_fallback": False,
                            "vocab": [["<unk>", 0.0], ["\u2581", -1.5], ["a", -2.0], ["\u2581he", -2.5]]},
                           pre_tokenizer=space, decoder=space)
    yield "words", whole({"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"},
                         pre_tokenizer={"type": "Whitespace"})


def companions_seeds():
    token = {"content": "</s>", "lstrip": False, "normalized": False, "special": True}
    config = {"bos_token": "<s>", "eos_token": token, "pad_token": None, "chat_template": TEMPLATES["chatml"],
              "added_tokens_decoder": {"5": token | {"content": "<t>"}}, "extra_special_tokens": {"image_token": "<i>"}}
    maps = {"bos_token": {"content": "<s>"}, "additional_special_tokens": ["<t>", {"content": "</s>"}]}
    yield "text", pieces(json.dumps(config), json.dumps(maps))
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "{{ bos_token }}d"}]
    yield "list", pieces(json.dumps(config | {"chat_template": named}), "{}")


# Targets whose inputs may be recipes: 0xff, then bytes that choose what a file is made of (src/draw.rs).
RECIPES = ("gguf", "hub", "template", "tokenizer")


def recipes(count=24):
    yield "recipe", b"\xff"
    for index in range(count):
        draw = random.Random(index)
        yield f"recipe-{index}", b"\xff" + draw.randbytes(draw.randrange(64, 768))


def session_seeds():
    seen, entries = 9, 4

    def floats(count):
        return struct.pack(f"<{count}f", *((i * 7 % 11) / 8 for i in range(count)))

    def state(**more):
        return {"entries": 0, "rows": 0, "sequence": 0, "counts": [], "members": []} | more

    def seed(rule, states=None, tensors=(), queries=0, ordered=False, phases=("prefill", "decode"), **more):
        states, budget = states or {}, entries
        plan = f"{{schema: 1, layers: 2, budget: {{tokens: {budget}}}" + "".join(
            f", {phase}: [{{layers: 0-1, {rule}}}]" for phase in phases) + "}"
        layer = {"capacity": entries + 1, "spans": [], "ordered": ordered, "heads_agree": True, "queries": queries}
        for phase in ("prefill", "decode"):
            layer[f"{phase}_budget"] = budget if phase in phases else None
            layer[phase] = states.get(phase, state())
        described = {
            "version": 1, "model": "m", "plan": plan, "rules": "", "attention": "scale of the head, soft-cap none", "batch": 1,
            "heads": 2, "kv_heads": 1, "head_dim": 4, "dtype": "f32", "seen": seen, "first": [0], "shift": 0, "spans": [], "pending": [3],
            "layers": [layer | {"window": None}, layer | {"window": 6}],
        } | more
        lines, data = ["tokens U32 1 9"], struct.pack("<9I", *range(9))
        positions = [8, 1, 5, 7] if ordered else [1, 5, 7, 8]
        for index in range(2):
            own = [("keys", (1, 1, entries, 4)), ("values", (1, 1, entries, 4)), ("positions", (1, 1, entries))]
            own += [("queries", (1, 2, queries, 4))] if queries else []
            for name, shape in own + list(tensors):
                kind = "U32" if name == "positions" else "F32"
                lines.append(f"layer.{index}.{name} {kind} " + " ".join(map(str, shape)))
                count = 1
                for dim in shape:
                    count *= dim
                fixed = {"positions": struct.pack("<4I", *positions), "behind": struct.pack("<4f", -2, 1, 2, 2)}
                data += fixed.get(name) or floats(count)
        return pieces(json.dumps(described), "\n".join(lines), data)

    sums = ("prefill.entries.0", (1, 1, entries))
    one = {"prefill": state(entries=1)}
    yield "full", seed("policy: full", phases=())
    yield "h2o", seed("policy: h2o", one, [sums])
    yield "decode", seed("policy: h2o", {"decode": state(entries=1)}, [("decode.entries.0", (1, 1, entries))], phases=("decode",))
    yield "tova", seed("policy: tova", queries=1, spans=[[0, 1]], first=[7])
    yield "snapkv", seed("policy: snapkv, params: {window: 2, kernel: 3}", queries=2)
    yield "lagkv", seed("policy: lagkv, params: {lag: 2, sinks: 1}", ordered=True)
    yield "scissorhands", seed("policy: scissorhands, params: {history: 9, recent: 3}",
                               {"prefill": state(entries=1, rows=1, counts=[9, 0, 0])},
                               [sums, ("prefill.rows.0", (1, 1, entries, 1))])
    yield "expected", seed("policy: expected-attention, params: {sinks: 1}",
                           {"prefill": state(sequence=2, counts=[8])},
                           [("prefill.sequence.0", (1, 2, 1, 4)), ("prefill.sequence.1", (1, 2, 4, 4))])
    yield "d2o", seed("policy: d2o, params: {sinks: 1}", {"prefill": state(entries=1, sequence=2)},
                      [sums, ("prefill.sequence.0", (1, 1, 1, 1)), ("prefill.sequence.1", (1, 1, 1, 1))])
    yield "blend", seed("policy: blend", {"prefill": state(members=[state(entries=1), state()])},
                        [("prefill.members.0.entries.0", (1, 1, entries))], queries=1)
    yield "cam", seed("policy: cam, params: {sinks: 1, window: 2}", one, [sums], queries=2, ordered=True)
    yield "packed", seed("policy: tova", tensors=[("behind", (1, 1, entries))], queries=1, shift=2)
    header = json.dumps({"__metadata__": {"polykv-session": json.dumps({"version": 2})}}).encode()
    yield "version", b"!" + struct.pack("<Q", len(header)) + header


SEEDS = {
    "companions": companions_seeds, "config": config_seeds, "gguf": gguf_seeds, "hub": hub_seeds, "journal": journal_seeds,
    "plan": PLANS.items, "profile": profile_seeds, "run": run_seeds, "safetensors": safetensors_seeds,
    "samples": sample_seeds, "session": session_seeds, "shards": shards_seeds, "template": TEMPLATES.items, "tokenizer": tokenizer_seeds,
}


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "seeds"
    for target, seeds in SEEDS.items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        words = set()
        for name, content in seeds():
            content = content if isinstance(content, bytes) else content.encode()
            (folder / target / name).write_bytes(content)
            words |= set(re.findall(rb"[A-Za-z_<|][\w.|>-]{1,30}", content))
        if target in RECIPES:
            for name, content in recipes():
                (folder / target / name).write_bytes(content)
        lines = (f'"{word.decode()}"' for word in sorted(words))
        (folder / f"{target}.dict").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
