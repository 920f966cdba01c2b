"""llama.cpp built for this machine, from the source distribution of llama-cpp-python, which brings the sources along.

`build` takes some 15 minutes on two cores, once; the result stays in the user's cache folder.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

# A source distribution, which pip would compile; its sources are all that is taken.
SOURCE = "llama-cpp-python==0.3.36"
TOOLS = ["cmake==4.1.2", "ninja==1.13.0"]
# What to name where the compiler knows fewer or more instructions than the machine runs: ggml's option, processor flags.
INSTRUCTIONS = {
    "GGML_SSE42": ["sse4_2"],
    "GGML_AVX": ["avx"],
    "GGML_AVX2": ["avx2"],
    "GGML_BMI2": ["bmi2"],
    "GGML_FMA": ["fma"],
    "GGML_F16C": ["f16c"],
    "GGML_AVX512": ["avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"],
    "GGML_AVX512_VBMI": ["avx512vbmi"],
    "GGML_AVX512_VNNI": ["avx512_vnni"],
    "GGML_AVX512_BF16": ["avx512_bf16"],
    "GGML_AMX_TILE": ["amx_tile"],
    "GGML_AMX_INT8": ["amx_int8"],
    "GGML_AMX_BF16": ["amx_bf16"],
}


def processor_flags():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split(":")[1].split() for line in lines if line.startswith("flags")), []))


def named_instructions():
    flags = processor_flags()
    on = {option: all(flag in flags for flag in needed) for option, needed in INSTRUCTIONS.items()}
    return ["-DGGML_NATIVE=OFF"] + [f"-D{option}={'ON' if has else 'OFF'}" for option, has in on.items()]


def compile_with(folder, python, options):
    source, out = folder / "source", folder / "build"
    shutil.rmtree(out, ignore_errors=True)
    tools = python.parent
    env = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    off = ["LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER", "LLAMA_BUILD_APP", "LLAMA_BUILD_UI",
           "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL", "BUILD_SHARED_LIBS"]
    command = [tools / "cmake", "-G", "Ninja", "-S", source, "-B", out, "-DCMAKE_BUILD_TYPE=Release",
               *(f"-D{name}=OFF" for name in off), *options]
    quiet = {"check": True, "env": env, "stdout": sys.stderr}
    subprocess.run(command, **quiet)
    subprocess.run([tools / "cmake", "--build", out, "--target", "llama-bench"], **quiet)
    return out / "bin/llama-bench"


def runs(binary, model):
    """Whether a short benchmark ends well: a compiler may use instructions that the machine does not run."""
    command = [binary, "-m", model, "-p", "8", "-n", "2", "-r", "1", "-o", "json"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def build(cache, python, model):
    """The path of llama-bench, and how it was built."""
    folder = cache / f"llama.cpp-{SOURCE.split('==')[1]}"
    binary, how = folder / "llama-bench", folder / "how.txt"
    if not binary.exists():
        print(f"building llama.cpp in {folder}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        pip = [python, "-m", "pip"]
        subprocess.run([*pip, "install", "-q", *TOOLS], check=True)
        subprocess.run([*pip, "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", folder, SOURCE], check=True)
        archive = next(folder.glob("*.tar.gz"))
        shutil.rmtree(folder / "source", ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        (folder / archive.name.removesuffix(".tar.gz") / "vendor/llama.cpp").rename(folder / "source")
        for options in (["-DGGML_NATIVE=ON"], named_instructions()):
            built = compile_with(folder, python, options)
            if runs(built, model):
                break
        else:
            sys.exit("llama.cpp: neither the native build nor the one with named instructions runs here")
        how.write_text(" ".join(option.removeprefix("-D") for option in options if not option.endswith("=OFF")))
        shutil.copy(built, binary)
    return binary, how.read_text()
