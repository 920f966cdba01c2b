//! Inputs that are recipes: their bytes choose what a file is made of. Such a file is whole but for a few faults, so that what
//! reads it gets further than into the first check.

/// Begins a recipe. No file that a target reads begins with it.
const MARK: u8 = 0xff;

/// What is left of a recipe.
pub struct Draw<'a>(pub &'a [u8]);

impl<'a> Draw<'a> {
    /// `None` for an input that is the file itself.
    pub fn of(input: &'a [u8]) -> Option<Self> {
        input.strip_prefix(&[MARK]).map(Self)
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next byte. A recipe that is used up gives zeros, which choose what is usual and no faults.
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// A number below `most`, which is 1 to 65,536.
    pub fn below(&mut self, most: usize) -> usize {
        let high = match most > 256 {
            true => usize::from(self.byte()) << 8,
            false => 0,
        };
        (high + usize::from(self.byte())) % most
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    /// What happens once in ten times.
    pub fn rarely(&mut self) -> bool {
        self.byte() > 230
    }

    /// How many faults there are: none in half of all cases, three at most.
    pub fn faults(&mut self) -> usize {
        self.below(8).saturating_sub(4).min(3)
    }

    /// A number that programs stumble over, or a small one.
    pub fn number(&mut self) -> u64 {
        const ODD: [u64; 14] = [
            0,
            1,
            2,
            3,
            7,
            255,
            1 << 16,
            (1 << 31) - 1,
            1 << 31,
            u32::MAX as u64,
            1 << 32,
            1 << 53,
            1 << 63,
            u64::MAX,
        ];
        match self.flag() {
            true => self.pick(&ODD),
            false => u64::from(self.byte()),
        }
    }

    /// Up to seven letters, spaces and signs, some of them of several bytes.
    pub fn text(&mut self) -> String {
        const LETTERS: [char; 20] = [
            'a',
            'b',
            'c',
            'd',
            'e',
            'h',
            'l',
            'o',
            ' ',
            '\n',
            '1',
            '.',
            '<',
            '|',
            '\u{e9}',
            'e',
            '\u{301}',
            '\u{4e16}',
            '\u{1f600}',
            '\u{2581}',
        ];
        let count = self.below(8);
        (0..count).map(|_| self.pick(&LETTERS)).collect()
    }
}
