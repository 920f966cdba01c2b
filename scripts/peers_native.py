"""llama.cpp built for this machine, for scripts/peers: from the source distribution of llama-cpp-python, which brings it along."""

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
TOOLS = ["cmake==4.4.5", "ninja==1.13.2"]
SOURCE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
SETTINGS = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF"]


def sources(python, folder):
    """The part of the source distribution that is llama.cpp, its sum compared before it is unpacked."""
    target = folder / "source"
    if target.exists():
        return target / SOURCE
    # pip prepares the package's metadata with tools that it fetches for that, which takes a minute or two.
    subprocess.run([python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", PACKAGE, "-d", folder,
                    f"{PACKAGE}=={VERSION}"], check=True, stdout=sys.stderr)
    archive = folder / f"llama_cpp_python-{VERSION}.tar.gz"
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{archive.name}: SHA-256 {found}; allowed: {SHA256}")
    part = folder / "source.part"
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.startswith(SOURCE)]
        tar.extractall(part, members, filter="data")
    part.rename(target)
    return target / SOURCE


def build(python, folder, flags):
    """The path of llama-bench. The first build takes about a quarter of an hour on two cores."""
    binary = folder / ("build-" + hashlib.sha256(" ".join(flags).encode()).hexdigest()[:8]) / "bin/llama-bench"
    if binary.exists():
        return binary
    folder.mkdir(parents=True, exist_ok=True)
    print(f"building llama.cpp in {folder}", file=sys.stderr)
    subprocess.run([python, "-m", "pip", "install", "-q", *TOOLS], check=True, stdout=sys.stderr)
    source, out, tools = sources(python, folder), binary.parent.parent, Path(python).parent
    configure = [tools / "cmake", "-S", source, "-B", out, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"]
    subprocess.run([*configure, *SETTINGS, *flags], check=True, stdout=sys.stderr)
    subprocess.run([tools / "cmake", "--build", out, "--target", "llama-bench"], check=True, stdout=sys.stderr)
    return binary


def measure(binary, model, lengths, new_tokens, threads):
    """Tokens per second: a prompt of each length on its own, and decoding after it. Each after a warm-up, once."""
    def bench(*test):
        command = [binary, "-m", model, "-t", str(threads), "-r", "1", "-o", "json", *test]
        rows = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        return [row["avg_ts"] for row in rows]

    listed = ",".join(map(str, lengths))
    prefill = bench("-p", listed, "-n", "0")
    decode = bench("-p", "0", "-n", str(new_tokens), "-d", listed)
    return {length: {"prefill": p, "decode": d} for length, p, d in zip(lengths, prefill, decode, strict=True)}
