//! Inputs that are a little wrong, made of others.

/// Texts that numbers are replaced by.
const NUMBERS: [&str; 8] = [
    "0",
    "-1",
    "1e999",
    "0.5",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "99999999999999999999999999",
];
const BYTES: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'\n'];

/// Variants of inputs, the same ones in every run.
pub struct Variants<'a> {
    inputs: &'a [Vec<u8>],
    state: u64,
}

impl<'a> Variants<'a> {
    pub fn new(inputs: &'a [Vec<u8>]) -> Self {
        let state = 0x9e37_79b9_7f4a_7c15;
        Self { inputs, state }
    }

    /// A number below `most`, which is at least 1 (xorshift64*, Vigna 2016, arXiv 1402.6246).
    fn below(&mut self, most: usize) -> usize {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let drawn = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(drawn).unwrap() % most.max(1)
    }

    /// A variant of one of the inputs, with one to four changes.
    pub fn next(&mut self) -> Vec<u8> {
        let which = self.below(self.inputs.len());
        let mut input = self.inputs[which].clone();
        for _ in 0..=self.below(4) {
            self.change(&mut input);
        }
        input
    }

    /// A recipe of random bytes.
    pub fn recipe(&mut self) -> Vec<u8> {
        let length = 64 + self.below(704);
        let bytes = (0..length).map(|_| u8::try_from(self.below(256)).unwrap());
        std::iter::once(0xff).chain(bytes).collect()
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length);
        let most = (length - start).min(64);
        start..start + self.below(most + 1)
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        if input.is_empty() {
            return;
        }
        match self.below(7) {
            0 => {
                let (at, bit) = (self.below(input.len()), self.below(8));
                input[at] ^= 1 << bit;
            }
            1 => {
                let (at, byte) = (self.below(input.len()), self.below(BYTES.len()));
                input[at] = BYTES[byte];
            }
            2 => input.truncate(self.below(input.len())),
            3 => {
                let range = self.range(input.len());
                input.drain(range);
            }
            4 => {
                let part = input[self.range(input.len())].to_vec();
                let at = self.below(input.len());
                input.splice(at..at, part);
            }
            5 => {
                let which = self.below(self.inputs.len());
                let other = &self.inputs[which];
                if !other.is_empty() {
                    let part = other[self.range(other.len())].to_vec();
                    let at = self.below(input.len());
                    input.splice(at..at, part);
                }
            }
            _ => self.change_number(input),
        }
    }

    fn change_number(&mut self, input: &mut Vec<u8>) {
        let from = self.below(input.len());
        let digit = input[from..].iter().position(u8::is_ascii_digit);
        let Some(start) = digit.map(|at| from + at) else {
            return;
        };
        let digits = input[start..]
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .count();
        let number = NUMBERS[self.below(NUMBERS.len())];
        input.splice(start..start + digits, number.bytes());
    }
}
